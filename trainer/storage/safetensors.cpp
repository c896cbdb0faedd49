#include "storage/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "storage/atomic_file.h"
#include "storage/mapped_file.h"
#include "storage/safetensors_format.h"
#include "support/error.h"

namespace uniattn {

struct SafetensorsFile::Mapped {
  explicit Mapped(const std::string& path) : file(path), header(safetensors::parse_header(file.bytes(), path)) {}
  MappedFile file;
  safetensors::Header header;
};

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(std::make_shared<const Mapped>(path)) {}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [name, info] : file_->header.tensors) names.push_back(name);
  return names;
}

bool SafetensorsFile::contains(const std::string& name) const {
  return file_->header.tensors.contains(name);
}

TensorInfo SafetensorsFile::info(const std::string& name) const {
  const auto found = file_->header.tensors.find(name);
  if (found == file_->header.tensors.end()) fail("{}: there is no tensor \"{}\"", file_->file.path(), name);
  return found->second;
}

at::Tensor SafetensorsFile::tensor(const std::string& name) const {
  const TensorInfo found = info(name);
  const std::string_view bytes = file_->file.bytes().substr(found.begin, found.end - found.begin);
  if (found.dtype == at::kBool && std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != 0 && c != 1; })) {
    fail("{}, tensor \"{}\": BOOL values other than 0 and 1", file_->file.path(), name);
  }
  if (found.begin % c10::elementSize(found.dtype) != 0) {
    // Files of other writers may hold elements that are not aligned, which no kernel expects.
    at::Tensor copy = at::empty(found.shape, found.dtype);
    std::memcpy(copy.data_ptr(), bytes.data(), bytes.size());
    return copy;
  }
  return at::from_blob(
      const_cast<char*>(bytes.data()), found.shape, [keep = file_](void*) {}, at::TensorOptions().dtype(found.dtype));
}

void SafetensorsFile::release() const {
  file_->file.release(file_->file.bytes().size());
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return file_->header.metadata;
}

void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const safetensors::Layout layout = safetensors::lay_out(tensors, metadata);
  write_file_atomically(path, [&](FileWriter& file) {
    file.write(layout.prefix.data(), layout.prefix.size());
    for (const size_t i : layout.order) {
      const at::Tensor data = tensors[i].second.cpu().contiguous();
      file.write(data.const_data_ptr(), data.nbytes());
    }
  });
}

}  // namespace uniattn
