// Tensors of which several files hold parts.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/snapshot.h"

namespace uniattn {

// Writes one rank's parts as a safetensors file, whole tensors in their shape, others flat, and returns where they are:
// {"NAME": {"shape": [...], "begin": B}}.
nlohmann::json write_parts(const std::string& path, const TensorParts& parts);

// `files` is {"FILE": what write_parts gave}; they lie in `directory`. Throws Error when the parts of a tensor overlap
// or leave a hole.
std::shared_ptr<const TensorSource> open_parts(const std::string& directory, const nlohmann::json& files);

}  // namespace uniattn
