#include "train/metrics.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "storage/atomic_file.h"
#include "support/error.h"

namespace uniattn {

nlohmann::ordered_json to_json(const StepMetrics& m) {
  nlohmann::ordered_json line{
      {"stage", m.at.stage}, {"step", m.at.step}, {"run_step", m.at.run_step}, {"loss", m.loss}};
  if (m.distill_loss) line["distill_loss"] = *m.distill_loss;
  line.update({{"learning_rate", m.learning_rate},
               {"grad_norm", m.gradient_norm},
               {"updated", m.updated},
               {"tokens", m.tokens},
               {"supervised_tokens", m.supervised_tokens},
               {"seconds", m.seconds},
               {"tokens_per_s", static_cast<double>(m.tokens) / m.seconds},
               {"mfu", m.mfu},
               {"mfu_causal", m.mfu_causal},
               {"peak_memory_bytes", m.peak_memory_bytes}});
  return line;
}

void append_line(const std::string& path, const nlohmann::ordered_json& line) {
  std::ofstream out(path, std::ios::app);
  out << line.dump() << "\n" << std::flush;
  if (!out) fail("cannot append to `{}`: is the disk full?", path);
}

void trim_lines(const std::string& path, const ToldSteps& told) {
  if (!std::filesystem::exists(path)) return;
  std::ifstream in(path);
  std::string kept;
  for (std::string text; std::getline(in, text);) {
    const nlohmann::json line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object()) continue;  // the torn last line of a killed process
    const int64_t step = line.value("run_step", std::numeric_limits<int64_t>::max());
    const bool unknown_evaluation = step == told.steps && line.contains("held_out_loss") && !told.evaluation;
    if (step <= told.steps && !unknown_evaluation) kept += text + "\n";
  }
  write_file_atomically(path, kept);
}

}  // namespace uniattn
