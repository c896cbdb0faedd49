#include <ATen/ATen.h>
#include <unistd.h>

#include "fuzz.h"
#include "storage/atomic_file.h"
#include "storage/safetensors.h"

namespace {

// A model directory with one shard, which stays, and an index.
std::string model_directory() {
  std::string directory = "/tmp/uniattn-fuzz-XXXXXX";
  if (!mkdtemp(directory.data())) std::abort();
  uniattn::write_safetensors(directory + "/shard.safetensors", {{"a", at::ones({2})}, {"b", at::zeros({1, 3})}});
  return directory;
}

}  // namespace

UNIATTN_FUZZ([](std::string_view bytes) {
  static const std::string directory = model_directory();
  uniattn::write_file_atomically(directory + "/model.safetensors.index.json", bytes);
  const auto tensors = uniattn::open_model_tensors(directory);
  for (const std::string& name : tensors->names()) tensors->tensor(name);
})
