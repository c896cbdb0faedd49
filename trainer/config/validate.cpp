// What each section of the configuration must satisfy, and what the sections must satisfy together.
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string_view>

#include "config/config.h"
#include "config/invalid.h"

namespace uniattn {
namespace {

using Names = std::initializer_list<std::string_view>;

void require_text(const std::string& key, const std::string& value) {
  if (value.empty()) invalid(key, "is missing or empty; it must be given");
}

void require_known(const std::string& key, const std::string& value, Names known) {
  if (std::ranges::find(known, value) == known.end()) {
    invalid(key, "expected one of {}, found '{}'", fmt::join(known, ", "), value);
  }
}

// Every item of a list is known, and none is repeated.
void require_known_once(const std::string& list, const std::vector<std::string>& values, Names known) {
  for (size_t i = 0; i < values.size(); ++i) {
    const std::string key = fmt::format("{}.{}", list, i);
    require_known(key, values[i], known);
    const auto own_place = values.begin() + static_cast<ptrdiff_t>(i);
    if (std::find(values.begin(), own_place, values[i]) != own_place)
      invalid(key, "'{}' is listed twice; remove one of them", values[i]);
  }
}

template <class T>
void require_at_least(const std::string& key, T value, T low) {
  if (value < low) invalid(key, "must be at least {}, found {}", low, value);
}

void require_positive(const std::string& key, double value) {
  if (!(value > 0)) invalid(key, "must be above 0, found {}", value);
}

void require_within(const std::string& key, double value, double low, double below) {
  if (!(value >= low && value < below)) invalid(key, "must be at least {} and below {}, found {}", low, below, value);
}

void validate_compensation(const std::string& key, const CompensationConfig& compensation) {
  if (compensation.kind == "low_rank") require_at_least<int64_t>(key + ".rank", compensation.rank, 1);
}

template <class T>
void validate_items(const std::string& key, const std::vector<T>& items) {
  for (size_t i = 0; i < items.size(); ++i) items[i].validate(fmt::format("{}.{}", key, i));
}

// A plan file is read later, when the number of layers is known: it gets the benefit of the doubt.
bool may_have_compensation(const PlanConfig& plan) {
  if (plan.group > 0) return plan.compensation.kind != "none";
  return !plan.file.empty() ||
         std::ranges::any_of(plan.layers, [](const auto& layer) { return layer.compensation.kind != "none"; });
}

void validate_stages(const std::vector<StageConfig>& stages, const std::optional<PlanConfig>& plan) {
  std::set<std::string> names;
  for (size_t i = 0; i < stages.size(); ++i) {
    const std::string key = fmt::format("stages.{}", i);
    stages[i].validate(key);
    if (!names.insert(stages[i].name).second) {
      invalid(key + ".name", "'{}' is the name of an earlier stage; give each its own", stages[i].name);
    }
    // Without a plan the model may be unified already; then the trainer looks for its compensations.
    if (stages[i].train.kind == "compensation" && plan && !may_have_compensation(*plan)) {
      invalid(key + ".train", "trains the compensation, and the plan has none; set plan.compensation, or train: all");
    }
  }
}

}  // namespace

void RunConfig::validate() const {
  require_text("run.name", name);
  require_text("run.dir", dir);
  require_at_least<int64_t>("run.seed", seed, 0);
  if (peak_tflops) require_positive("run.peak_tflops", *peak_tflops);
}

void ModelSection::validate() const {
  require_text("model.path", path);
  require_known("model.dtype", dtype, {"float32", "bfloat16"});
}

void LayerPlanConfig::validate(const std::string& where) const {
  require_at_least<int64_t>(where + ".layer", layer, 0);
  require_known(where + ".mode", mode, {"full", "share_probs", "share_kv", "linear", "skip"});
  require_at_least<int64_t>(where + ".num_kv_heads", num_kv_heads, 0);
  if (mode == "full" && num_kv_heads == 0)
    invalid(where + ".mode",
            "is full (the default), as a layer that is not listed; give another mode, or fewer num_kv_heads");
  validate_compensation(where + ".compensation", compensation);
  require_known(where + ".mask", mask, {"own", "leader"});
}

void PlanConfig::validate() const {
  if ((group != 0) + !layers.empty() + !file.empty() != 1) {
    invalid("plan", "expected one of group (with begin and end), layers and file, found {}",
            group == 0 && layers.empty() && file.empty() ? "none of them" : "several");
  }
  require_known("plan.mode", mode, {"share_probs", "share_kv", "linear", "skip"});
  validate_compensation("plan.compensation", compensation);
  require_at_least<int64_t>("plan.num_kv_heads", num_kv_heads, 0);
  require_known("plan.mask", mask, {"own", "leader"});
  validate_items("plan.layers", layers);
  if (group != 0) {
    require_at_least<int64_t>("plan.group", group, 1);
    require_at_least<int64_t>("plan.begin", begin, 0);
    if (end <= begin) invalid("plan.end", "must be above plan.begin ({}), found {}", begin, end);
    return;
  }
  const PlanConfig defaults;
  const auto only_with_group = [](const char* key, bool is_set) {
    if (is_set)
      invalid(key, "belongs to the short form (group, begin, end); in `layers` and `file` each layer has its own");
  };
  only_with_group("plan.begin", begin != 0);
  only_with_group("plan.end", end != 0);
  only_with_group("plan.mode", mode != defaults.mode);
  only_with_group("plan.compensation", compensation != defaults.compensation);
  only_with_group("plan.num_kv_heads", num_kv_heads != defaults.num_kv_heads);
  only_with_group("plan.mask", mask != defaults.mask);
}

void DataSource::validate(const std::string& where) const {
  require_text(where + ".path", path);
  require_known(where + ".format", format, {"alpaca", "messages", "tulu_single_round", "text", "ids"});
  if (!template_name.empty()) {
    require_known(
        where + ".template", template_name,
        {"alpaca", "tulu", "llama2", "llama3", "llama3.1", "mistral", "mistral-v0.3", "gemma", "chatml", "plain"});
    if (format == "text" || format == "ids")
      invalid(where + ".template", "'{}' is for conversations and instructions, and the format is {}; remove it",
              template_name, format);
  }
  require_positive(where + ".weight", weight);
}

void RanksConfig::validate() const {
  require_within("calibration.ranks.energy", energy, 0, 1);
  require_within("calibration.ranks.parameters", parameters, 0, 1);
  if (energy > 0 && parameters > 0) invalid("calibration.ranks", "has energy and parameters; give one of them");
}

void CalibrationConfig::validate() const {
  if (data.empty()) invalid("calibration.data", "is empty; give at least one {{path, format}}");
  validate_items("calibration.data", data);
  require_at_least<int64_t>("calibration.samples", samples, 0);
  require_within("calibration.held_out", held_out, 0, 1);
  if (ridge && *ridge < 0) invalid("calibration.ridge", "must be `auto` or at least 0, found {}", *ridge);
  if (!ridge && held_out == 0) {
    invalid("calibration.held_out",
            "is 0, and ridge: auto chooses on held-out documents; hold some out, or give a ridge");
  }
  if (fit.empty()) invalid("calibration.fit", "is empty; expected some of head_map, value, output, compensation");
  require_known_once("calibration.fit", fit, {"head_map", "value", "output", "compensation"});
  ranks.validate();
  if (ranks != RanksConfig{} && std::ranges::find(fit, "compensation") == fit.end())
    invalid("calibration.ranks", "chooses the ranks of compensations, and calibration.fit has none; add it");
}

void SearchBudget::validate() const {
  require_at_least<int64_t>("search.budget.followers", followers, 0);
  for (const auto& [key, share] :
       {std::pair{"kv_bytes", kv_bytes}, {"attention_flops", attention_flops}, {"parameters", parameters}})
    require_within(std::string("search.budget.") + key, share, 0, 1);
  const int given = (followers > 0) + (kv_bytes > 0) + (attention_flops > 0) + (parameters > 0);
  if (given != 1) {
    invalid("search.budget", "expected exactly one of followers, kv_bytes, attention_flops and parameters, found {}",
            given == 0 ? "none" : "several");
  }
}

void SearchConfig::validate() const {
  budget.validate();
  if (modes.empty()) invalid("search.modes", "is empty; expected some of share_probs, share_kv, linear, skip");
  require_known_once("search.modes", modes, {"share_probs", "share_kv", "linear", "skip"});
  require_at_least<int64_t>("search.max_group", max_group, 2);
  validate_compensation("search.compensation", compensation);
  if (compensation.kind == "none" && std::ranges::find(modes, "linear") != modes.end())
    invalid("search.compensation", "is none, and it is all that a `linear` layer computes; set it, or drop the mode");
  require_at_least<int64_t>("search.rescore", rescore, 1);
}

void DataConfig::validate() const {
  validate_items("data.train", train);
  validate_items("data.eval", eval);
  require_at_least<int64_t>("data.max_length", max_length, 2);
  require_known("data.over_long", over_long, {"truncate", "drop", "split", "error"});
  require_known("data.bad_records", bad_records, {"drop", "error"});
}

void DistillConfig::validate(const std::string& where) const {
  require_known(where + ".target", target, {"attention", "logits"});
  if (!(weight > 0 && weight <= 1)) invalid(where + ".weight", "must be above 0 and at most 1, found {}", weight);
  require_positive(where + ".temperature", temperature);
  if (target == "attention" && temperature != 1)
    invalid(where + ".temperature", "belongs to target: logits; attention states have none");
}

void StageConfig::validate(const std::string& where) const {
  require_text(where + ".name", name);
  if (train.kind == "patterns" && train.patterns.empty())
    invalid(where + ".train", "is an empty list; expected compensation, all or patterns such as ['*.self_attn.*']");
  for (size_t i = 0; i < train.patterns.size(); ++i)
    require_text(fmt::format("{}.train.{}", where, i), train.patterns[i]);
  if (distill) distill->validate(where + ".distill");
  require_at_least<double>(where + ".epochs", epochs, 0);
  require_at_least<int64_t>(where + ".max_steps", max_steps, 0);
  if ((epochs > 0) == (max_steps > 0)) {
    invalid(where, "expected either epochs or max_steps above 0, found {} and {}", epochs, max_steps);
  }
  require_positive(where + ".learning_rate", learning_rate);
}

void OptimizerConfig::validate() const {
  require_at_least<int64_t>("optimizer.micro_batch", micro_batch, 1);
  require_at_least<int64_t>("optimizer.accumulation", accumulation, 1);
  require_known("optimizer.schedule", schedule, {"cosine", "linear", "constant", "wsd"});
  require_within("optimizer.warmup_ratio", warmup_ratio, 0, 1);
  require_within("optimizer.decay_ratio", decay_ratio, 0, 1);
  if (schedule == "wsd" && warmup_ratio + decay_ratio > 1)
    invalid("optimizer.decay_ratio", "and warmup_ratio must be at most 1 together, found {} and {}", decay_ratio,
            warmup_ratio);
  require_at_least<double>("optimizer.weight_decay", weight_decay, 0);
  require_at_least<double>("optimizer.clip_norm", clip_norm, 0);
  require_within("optimizer.beta1", beta1, 0, 1);
  require_within("optimizer.beta2", beta2, 0, 1);
  require_positive("optimizer.eps", eps);
  require_known("optimizer.moments", moments, {"float32", "bfloat16"});
}

void CheckpointConfig::validate() const {
  require_at_least<int64_t>("checkpoint.every_steps", every_steps, 0);
  require_at_least<double>("checkpoint.every_minutes", every_minutes, 0);
  if (every_steps == 0 && every_minutes == 0)
    invalid("checkpoint.every_steps", "is 0, and so is every_minutes; give one of them, or a crash loses everything");
  require_at_least<int64_t>("checkpoint.keep_last", keep_last, 1);
  require_at_least<int64_t>("checkpoint.keep_best", keep_best, 0);
}

void EvaluationConfig::validate() const {
  require_at_least<int64_t>("evaluation.every_steps", every_steps, 0);
}

void SamplesConfig::validate() const {
  for (size_t i = 0; i < prompts.size(); ++i) require_text(fmt::format("samples.prompts.{}", i), prompts[i]);
  require_at_least<int64_t>("samples.every_steps", every_steps, 1);
  require_at_least<int64_t>("samples.max_new_tokens", max_new_tokens, 1);
}

void ParallelConfig::validate() const {
  require_known("parallel.shard", shard, {"none", "optimizer", "gradients", "full"});
  require_at_least<int64_t>("parallel.replicas", replicas, 1);
  if (shard == "none" && replicas != 1)
    invalid("parallel.replicas",
            "is {}, and with shard: none every rank is a replica; choose what to shard, or drop it", replicas);
  require_known("parallel.offload", offload, {"none", "optimizer"});
  require_at_least<int64_t>("parallel.timeout_seconds", timeout_seconds, 1);
}

void ExportConfig::validate() const {
  require_known("export.dtype", dtype, {"float32", "bfloat16", "float16"});
  require_positive("export.max_shard_gb", max_shard_gb);
}

void Config::validate() const {
  run.validate();
  model.validate();
  if (plan) plan->validate();
  if (calibration) calibration->validate();
  if (search) search->validate();
  data.validate();
  validate_stages(stages, plan);
  optimizer.validate();
  checkpoint.validate();
  evaluation.validate();
  samples.validate();
  parallel.validate();
  exporting.validate();

  if (calibration && !plan && !search)
    invalid("calibration", "there is no plan to calibrate; add a plan, or remove this section");
  if (search && !calibration)
    invalid("search", "plans are compared on calibration data, and there is no `calibration` section; add one");
  if (plan && calibration && calibration->fit == std::vector<std::string>{"compensation"} &&
      !may_have_compensation(*plan)) {
    invalid("calibration.fit",
            "fits only the compensation, and the plan has none; set plan.compensation, or fit: [output]");
  }
  if (parallel.shard == "full" && !samples.prompts.empty())
    invalid("samples.prompts",
            "one rank writes the samples, and with parallel.shard: full none has the whole model; "
            "remove them, or shard gradients");
  if (!stages.empty() && data.train.empty())
    invalid("data.train", "is empty, and there are stages to train; give a data set");
  for (const auto& [key, needs] : {std::pair{"evaluation.every_steps", evaluation.every_steps > 0},
                                   {"checkpoint.keep_best", checkpoint.keep_best > 0}})
    if (needs && data.eval.empty()) invalid(key, "needs held-out data, and data.eval is empty; give a data set");
}

}  // namespace uniattn
