// The byte format that reader and writer share: 8 bytes little-endian header size, a JSON header, the tensors' data.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/safetensors.h"

namespace uniattn::safetensors {

inline constexpr size_t kSizeBytes = 8;
inline constexpr size_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

struct Header {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

// nullopt for a dtype this project does not use.
std::optional<at::ScalarType> dtype_from_name(const std::string& name);
// nullptr for a dtype the format lacks.
const char* dtype_name(at::ScalarType dtype);

// Checks everything that SafetensorsFile promises; `path` is for messages.
Header parse_header(std::string_view file, const std::string& path);

struct Layout {
  std::string prefix;         // size, header and padding: the file up to its data
  std::vector<size_t> order;  // in which the tensors follow
};

// Throws Error for a dtype that the format lacks, and for names that repeat or are reserved.
Layout lay_out(const NamedTensors& tensors, const std::map<std::string, std::string>& metadata);

}  // namespace uniattn::safetensors
