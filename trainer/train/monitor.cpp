#include "train/monitor.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "support/log.h"

namespace uniattn {
namespace {

nlohmann::ordered_json place(const RunStep& at) {
  return {{"stage", at.stage}, {"step", at.step}, {"run_step", at.run_step}};
}

}  // namespace

Monitor::Monitor(const RunDirectory& run, const ToldSteps& told)
    : metrics_(run.metrics()), samples_(run.samples()), events_(run.path, told.steps > 0 ? told.steps + 1 : 0) {
  trim_lines(metrics_, told);
  trim_lines(samples_, told);
}

void Monitor::step(const StepMetrics& m) {
  append_line(metrics_, to_json(m));
  std::vector<std::pair<std::string, double>> curves{
      {"train/loss", m.loss},
      {"train/learning_rate", m.learning_rate},
      {"train/grad_norm", m.gradient_norm},
      {"train/supervised_tokens", static_cast<double>(m.supervised_tokens)},
      {"speed/tokens_per_s", static_cast<double>(m.tokens) / m.seconds},
      {"speed/mfu", m.mfu},
      {"speed/mfu_causal", m.mfu_causal},
      {"memory/peak_bytes", static_cast<double>(m.peak_memory_bytes)}};
  if (m.distill_loss) curves.emplace_back("train/distill_loss", *m.distill_loss);
  events_.add_scalars(m.at.run_step, curves);
  progress_.show(m);
}

void Monitor::held_out(const RunStep& at, const Evaluation& evaluation) {
  nlohmann::ordered_json line = place(at);
  line["held_out_loss"] = evaluation.loss;
  line["held_out_tokens"] = evaluation.tokens;
  append_line(metrics_, line);
  events_.add_scalars(at.run_step, {{"held_out/loss", evaluation.loss}});
  say(fmt::format("stage {} step {}: held-out loss {:.4f}, perplexity {:.3f}", at.stage, at.step, evaluation.loss,
                  evaluation.perplexity()));
}

void Monitor::sample(const RunStep& at, const std::string& prompt, const std::string& continuation) {
  nlohmann::ordered_json line = place(at);
  line["prompt"] = prompt;
  line["text"] = continuation;
  append_line(samples_, line);
  events_.add_text(at.run_step, "samples/" + prompt, continuation);
  say(fmt::format("stage {} step {} sample: {}|{}", at.stage, at.step, prompt, continuation));
}

void Monitor::say(const std::string& message) {
  progress_.finish();
  log::info(message);
}

}  // namespace uniattn
