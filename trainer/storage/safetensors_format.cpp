#include "storage/safetensors_format.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "storage/json.h"
#include "support/error.h"

namespace uniattn::safetensors {
namespace {

using nlohmann::json;

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr std::array kDtypes{Dtype{"F64", at::kDouble},    Dtype{"F32", at::kFloat}, Dtype{"F16", at::kHalf},
                             Dtype{"BF16", at::kBFloat16}, Dtype{"I64", at::kLong},  Dtype{"I32", at::kInt},
                             Dtype{"I16", at::kShort},     Dtype{"I8", at::kChar},   Dtype{"U8", at::kByte},
                             Dtype{"BOOL", at::kBool}};

int64_t checked_size(const json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX}) {
    fail("{}: expected non-negative integers below 2^63, got {}", where, value.dump());
  }
  return value.get<int64_t>();
}

const json& field(const json& entry, const char* name, const std::string& where) {
  const auto found = entry.find(name);
  if (found == entry.end()) fail("{}: the header entry has no \"{}\"", where, name);
  return *found;
}

// Bytes of a tensor. Zero sizes count as one, because strides are products too and must not overflow either.
size_t checked_bytes(const std::vector<int64_t>& shape, size_t item_size, const std::string& where) {
  size_t bytes = item_size;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(std::max<int64_t>(size, 1)), &bytes) || bytes > INT64_MAX) {
      fail("{}: the shape [{}] overflows", where, fmt::join(shape, ", "));
    }
  }
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? bytes : 0;
}

TensorInfo parse_tensor(const json& entry, size_t data_begin, size_t file_size, const std::string& where) {
  if (!entry.is_object()) fail("{}: expected an object with dtype, shape and data_offsets", where);
  const json& dtype = field(entry, "dtype", where);
  const auto type = dtype.is_string() ? dtype_from_name(dtype.get<std::string>()) : std::nullopt;
  if (!type) fail("{}: unknown dtype {}", where, dtype.dump());
  TensorInfo info{.dtype = *type, .shape = {}};

  const json& shape = field(entry, "shape", where);
  if (!shape.is_array()) fail("{}: expected a list of sizes as shape, got {}", where, shape.dump());
  for (const json& size : shape) info.shape.push_back(checked_size(size, where + ", shape"));

  const json& offsets = field(entry, "data_offsets", where);
  if (!offsets.is_array() || offsets.size() != 2) fail("{}: expected two data_offsets, got {}", where, offsets.dump());
  const auto begin = static_cast<size_t>(checked_size(offsets[0], where + ", data_offsets"));
  const auto end = static_cast<size_t>(checked_size(offsets[1], where + ", data_offsets"));
  if (begin > end || end > file_size - data_begin) {
    fail("{}: data_offsets [{}, {}] are out of range: the file has {} bytes of data (cut off?)", where, begin, end,
         file_size - data_begin);
  }
  const size_t bytes = checked_bytes(info.shape, c10::elementSize(info.dtype), where);
  if (bytes != end - begin) {
    fail("{}: {} [{}] needs {} bytes, data_offsets [{}, {}] give {}", where, dtype.get<std::string>(),
         fmt::join(info.shape, ", "), bytes, begin, end, end - begin);
  }
  info.begin = data_begin + begin;
  info.end = data_begin + end;
  return info;
}

std::map<std::string, std::string> parse_metadata(const json& entry, const std::string& path) {
  if (!entry.is_object()) fail("{}: __metadata__ is not an object", path);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) fail("{}: __metadata__ \"{}\" is not a string", path, key);
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// Together the tensors must cover the data exactly, so that no byte is read twice or is never looked at.
void check_coverage(const std::map<std::string, TensorInfo>& tensors, size_t data_begin, size_t file_size,
                    const std::string& path) {
  std::vector<const std::pair<const std::string, TensorInfo>*> sorted;
  for (const auto& entry : tensors) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  size_t covered = data_begin;
  for (const auto* entry : sorted) {
    const auto& [name, info] = *entry;
    if (info.begin != covered) {
      fail("{}: the data of tensor \"{}\" begins at byte {}, expected {}: tensors {}", path, name, info.begin, covered,
           info.begin < covered ? "overlap" : "leave a hole");
    }
    covered = info.end;
  }
  if (covered != file_size) fail("{}: {} bytes follow the last tensor", path, file_size - covered);
}

}  // namespace

std::optional<at::ScalarType> dtype_from_name(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return dtype.type;
  }
  return std::nullopt;
}

const char* dtype_name(at::ScalarType type) {
  for (const Dtype& dtype : kDtypes) {
    if (type == dtype.type) return dtype.name;
  }
  return nullptr;
}

Header parse_header(std::string_view file, const std::string& path) {
  if (file.size() < kSizeBytes) fail("{}: {} bytes are no safetensors file: cut off?", path, file.size());
  uint64_t header_size;
  std::memcpy(&header_size, file.data(), kSizeBytes);
  if (header_size > kMaxHeaderBytes || header_size > file.size() - kSizeBytes) {
    fail("{}: a header of {} bytes does not fit the file's {} bytes or is over {}: not a safetensors file, or cut off",
         path, header_size, file.size(), kMaxHeaderBytes);
  }
  const json parsed = parse_json(file.substr(kSizeBytes, header_size), path + ", header");
  if (!parsed.is_object()) fail("{}: the header is not a JSON object", path);

  Header header;
  const size_t data_begin = kSizeBytes + header_size;
  for (const auto& [name, entry] : parsed.items()) {
    if (name == "__metadata__") {
      header.metadata = parse_metadata(entry, path);
    } else {
      const std::string where = fmt::format("{}, tensor \"{}\"", path, name);
      header.tensors.emplace(name, parse_tensor(entry, data_begin, file.size(), where));
    }
  }
  check_coverage(header.tensors, data_begin, file.size(), path);
  return header;
}

Layout lay_out(const NamedTensors& tensors, const std::map<std::string, std::string>& metadata) {
  // Wide elements first: each tensor then starts at a multiple of its element size, without holes.
  Layout layout{.prefix = {}, .order = std::vector<size_t>(tensors.size())};
  std::iota(layout.order.begin(), layout.order.end(), 0);
  std::stable_sort(layout.order.begin(), layout.order.end(), [&](size_t a, size_t b) {
    return tensors[a].second.element_size() > tensors[b].second.element_size();
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::map<std::string, int> seen{{"__metadata__", 1}};
  size_t offset = 0;
  for (const size_t i : layout.order) {
    const auto& [name, tensor] = tensors[i];
    const char* dtype = dtype_name(tensor.scalar_type());
    if (dtype == nullptr) fail("tensor \"{}\": safetensors has no dtype {}", name, c10::toString(tensor.scalar_type()));
    if (seen[name]++ > 0) fail("tensor \"{}\": the name is reserved or was given twice", name);
    const size_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }

  std::string text = header.dump();
  text.append((64 - (kSizeBytes + text.size()) % 64) % 64, ' ');
  const uint64_t size = text.size();
  layout.prefix.assign(reinterpret_cast<const char*>(&size), kSizeBytes);
  layout.prefix += text;
  return layout;
}

}  // namespace uniattn::safetensors
