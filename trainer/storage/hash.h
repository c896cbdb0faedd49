// XXH3, 128 bits: finds torn and altered files at the speed of memory. It is no protection against an attacker who also
// rewrites the manifest that holds the hash.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace uniattn {

class Hasher {
 public:
  Hasher();
  ~Hasher();
  void update(std::string_view bytes);
  // Of everything so far, as 32 hexadecimal digits.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Of a file's bytes; throws Error when it cannot be read.
std::string file_hash(const std::string& path);

}  // namespace uniattn
