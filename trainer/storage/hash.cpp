#include "storage/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "storage/mapped_file.h"
#include "support/error.h"

namespace uniattn {

struct Hasher::State {
  XXH3_state_t xxh3;
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}
Hasher::~Hasher() = default;

void Hasher::update(std::string_view bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::string Hasher::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string file_hash(const std::string& path) {
  const MappedFile file(path);
  Hasher hasher;
  hasher.update(file.bytes());
  return hasher.hex();
}

}  // namespace uniattn
