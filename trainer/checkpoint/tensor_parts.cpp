#include "checkpoint/tensor_parts.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

int64_t elements_in(const std::vector<int64_t>& shape) {
  return c10::multiply_integers(shape);
}

struct Part {
  int64_t begin, end;
  std::shared_ptr<const SafetensorsFile> file;
};

struct Whole {
  TensorInfo info;
  std::vector<Part> parts;  // by begin
};

class PartedTensors : public TensorSource {
 public:
  explicit PartedTensors(std::string directory) : directory_(std::move(directory)) {}

  void add(const std::string& file_name, const json& tensors) {
    const auto file = files_.emplace_back(std::make_shared<const SafetensorsFile>(directory_ + "/" + file_name));
    for (const auto& [name, place] : tensors.items()) {
      const TensorInfo info = file->info(name);
      const int64_t begin = place.at("begin"), end = begin + elements_in(info.shape);
      Whole& whole = tensors_[name];
      whole.info = {.dtype = info.dtype, .shape = place.at("shape")};
      whole.parts.push_back({begin, end, file});
    }
  }

  void check() {
    for (auto& [name, whole] : tensors_) {
      std::ranges::sort(whole.parts, {}, &Part::begin);
      int64_t end = 0;
      for (const Part& part : whole.parts) {
        if (part.begin != end) fail("snapshot `{}`: the parts of tensor `{}` do not meet at {}", directory_, name, end);
        end = part.end;
      }
      if (end != elements_in(whole.info.shape))
        fail("snapshot `{}`: the parts of tensor `{}` hold {} elements, expected {}", directory_, name, end,
             elements_in(whole.info.shape));
    }
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, whole] : tensors_) names.push_back(name);
    return names;
  }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }
  TensorInfo info(const std::string& name) const override { return whole(name).info; }
  at::Tensor tensor(const std::string& name) const override {
    const Whole& found = whole(name);
    if (found.parts.size() == 1) return found.parts[0].file->tensor(name).view(found.info.shape);
    return slice(name, 0, elements_in(found.info.shape)).view(found.info.shape);
  }
  at::Tensor slice(const std::string& name, int64_t begin, int64_t end) const override {
    std::vector<at::Tensor> pieces;
    for (const Part& part : whole(name).parts) {
      const int64_t from = std::max(begin, part.begin), to = std::min(end, part.end);
      if (from < to) pieces.push_back(part.file->slice(name, from - part.begin, to - part.begin));
    }
    return pieces.size() == 1 ? pieces[0] : at::cat(pieces);
  }

  void release() const override {
    for (const auto& file : files_) file->release();
  }

 private:
  const Whole& whole(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("snapshot `{}`: there is no tensor `{}`", directory_, name);
    return found->second;
  }

  std::string directory_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string, Whole> tensors_;
};

}  // namespace

json write_parts(const std::string& path, const TensorParts& parts) {
  json places = json::object();
  NamedTensors tensors;
  for (const TensorPart& part : parts) {
    const bool whole = part.values.numel() == elements_in(part.shape);
    tensors.emplace_back(part.name, whole ? part.values.detach().view(part.shape) : part.values.detach());
    places[part.name] = {{"shape", part.shape}, {"begin", part.begin}};
  }
  write_safetensors(path, tensors);
  return places;
}

std::shared_ptr<const TensorSource> open_parts(const std::string& directory, const json& files) {
  auto tensors = std::make_shared<PartedTensors>(directory);
  for (const auto& [file, places] : files.items()) tensors->add(file, places);
  tensors->check();
  return tensors;
}

}  // namespace uniattn
