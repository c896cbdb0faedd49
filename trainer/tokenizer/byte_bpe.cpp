#include "tokenizer/byte_bpe.h"

#include "support/error.h"

namespace uniattn {

ByteBpe::ByteBpe(std::vector<std::string> tokens, const std::vector<Merge>& merges, bool whole_words)
    : tokens_(std::move(tokens)), merges_(merges) {
  byte_ids_.fill(-1);
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string& bytes = tokens_[id];
    if (bytes.size() == 1) byte_ids_[static_cast<uint8_t>(bytes[0])] = static_cast<int32_t>(id);
    if (whole_words && !bytes.empty()) words_.emplace(bytes, static_cast<int32_t>(id));
  }
}

void ByteBpe::encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (const auto whole = words_.find(word); whole != words_.end()) return ids.push_back(whole->second);
  scratch.symbols.clear();
  for (const char c : word) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte_ids_[byte] < 0) fail("the tokenizer's vocabulary has no token for the byte {:#04x}", byte);
    scratch.symbols.push_back({.id = byte_ids_[byte], .previous = -1, .next = -1});
  }
  merges_.apply(scratch, ids);
}

}  // namespace uniattn
