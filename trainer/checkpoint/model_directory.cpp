#include "checkpoint/model_directory.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "model/decoder.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
ModelDirectory open_model_directory(const std::string& path) {
  if (!std::filesystem::is_directory(path)) fail("model directory `{}` does not exist", path);
  return make_model_directory(path, read_json(path + "/config.json"));
}

ModelDirectory make_model_directory(const std::string& path, nlohmann::json config) {
  ModelDirectory directory{.path = path, .json = std::move(config), .config = {}, .plan = {}};
  try {
    if (directory.json.contains("grouping_idx"))
      fail(
          "config.json is of the published UniAttn code, whose weights mean something only under its plan: convert the "
          "directory by `uniattn convert --group G --begin B --end E`");
    directory.config = parse_model_config(directory.json);
    directory.plan = parse_plan(directory.json, directory.config);
  } catch (const Error& error) {
    fail("model directory `{}`: {}", path, error.what());
  }
  return directory;
}

void check_tensors(const TensorSource& source, const ModelConfig& config, const SharingPlan& plan,
                   bool allow_missing_compensation) {
  for (const TensorSpec& spec : tensor_specs(config, plan)) {
    if (allow_missing_compensation && is_compensation(spec.name) && !source.contains(spec.name)) continue;
    const TensorInfo info = source.info(spec.name);
    if (info.shape != spec.shape && !(allow_missing_compensation && spec.is_to_pool(info.shape)))
      fail("tensor `{}` has shape [{}], config.json needs [{}]", spec.name, fmt::join(info.shape, ", "),
           fmt::join(spec.shape, ", "));
    if (!at::isFloatingType(info.dtype))
      fail("tensor `{}` has dtype {}, expected a floating-point one", spec.name, at::toString(info.dtype));
  }
}

std::vector<std::string> LayeredSource::names() const {
  std::set<std::string> all;
  for (const auto& source : sources_)
    for (std::string& name : source->names()) all.insert(std::move(name));
  return {all.begin(), all.end()};
}

bool LayeredSource::contains(const std::string& name) const {
  return std::any_of(sources_.begin(), sources_.end(), [&](const auto& source) { return source->contains(name); });
}

const TensorSource& LayeredSource::source_of(const std::string& name) const {
  for (const auto& source : sources_)
    if (source->contains(name)) return *source;
  return *sources_.back();  // reports the missing name
}

TensorInfo LayeredSource::info(const std::string& name) const {
  return source_of(name).info(name);
}
at::Tensor LayeredSource::tensor(const std::string& name) const {
  return source_of(name).tensor(name);
}
at::Tensor LayeredSource::slice(const std::string& name, int64_t begin, int64_t end) const {
  return source_of(name).slice(name, begin, end);
}

void LayeredSource::release() const {
  for (const auto& source : sources_) source->release();
}

at::ScalarType parse_dtype(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  fail_usage("dtype `{}` is unknown; known: float32, bfloat16, float16", name);
}

}  // namespace uniattn
