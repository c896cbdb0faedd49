// A Hugging Face model directory: config.json, tensors, and what identifies it.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "model/config.h"
#include "storage/safetensors.h"

namespace uniattn {

struct ModelDirectory {
  std::string path;
  nlohmann::json json;  // config.json
  ModelConfig config;
  SharingPlan plan;  // of an exported directory; all full otherwise
};

// Reads config.json only. Throws Error naming the directory and what is wrong with it.
ModelDirectory open_model_directory(const std::string& path);

// The same of a config.json in memory.
ModelDirectory make_model_directory(const std::string& path, nlohmann::json config);

// Throws Error when the source lacks a tensor that the plan needs or has it in another shape. With
// `allow_missing_compensation`, for a base under a plan: compensations may be missing (they start at zero), and key and
// value projections may have the base's heads (they are pooled). Reads headers only.
void check_tensors(const TensorSource& source, const ModelConfig& config, const SharingPlan& plan,
                   bool allow_missing_compensation);

// Several sources as one: the first that has a name gives the tensor.
class LayeredSource : public TensorSource {
 public:
  explicit LayeredSource(std::vector<std::shared_ptr<const TensorSource>> sources) : sources_(std::move(sources)) {}
  std::vector<std::string> names() const override;
  bool contains(const std::string& name) const override;
  TensorInfo info(const std::string& name) const override;
  at::Tensor tensor(const std::string& name) const override;
  void release() const override;
  at::Tensor slice(const std::string& name, int64_t begin, int64_t end) const override;

 private:
  const TensorSource& source_of(const std::string& name) const;
  std::vector<std::shared_ptr<const TensorSource>> sources_;
};

// Throws UsageError for a name that is none of float32, bfloat16, float16.
at::ScalarType parse_dtype(const std::string& name);

}  // namespace uniattn
