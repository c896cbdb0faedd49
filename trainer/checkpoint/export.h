// A Hugging Face directory out of tensors and a plan (docs/export-format.md).
#pragma once
#include <optional>
#include <string>

#include "checkpoint/model_directory.h"

namespace uniattn {

struct ExportOptions {
  at::ScalarType dtype = at::kBFloat16;
  size_t max_shard_bytes = size_t{5} << 30;
  std::optional<std::string> chat_template{};  // by name (data/templates.h), in place of the base's
};

// Writes `out`, streaming tensor by tensor: config.json of `base` with only what the plan changes, the weights that
// `plan` keeps, base's tokenizer files, generation config and (but for options.chat_template) chat template, and
// modeling_uniattn.py when the plan shares. The directory appears whole (written beside and renamed). Compensations
// that `tensors` lacks are left out of the weights and of the plan. Throws Error when `out` exists and is not an export
// of this program.
void export_model(const ModelDirectory& base, SharingPlan plan, const TensorSource& tensors, const std::string& out,
                  const ExportOptions& options);

}  // namespace uniattn
