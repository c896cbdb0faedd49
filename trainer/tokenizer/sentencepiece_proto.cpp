#include "tokenizer/sentencepiece_proto.h"

#include "support/error.h"

namespace uniattn {
namespace {

// Numbers of sentencepiece_model.proto.
constexpr uint64_t kPieces = 1, kTrainer = 2, kNormalizer = 3;
constexpr uint64_t kModelType = 3, kSpaceAsSuffix = 24, kByteFallback = 35;                         // of the trainer
constexpr uint64_t kCharacterMap = 2, kDummyPrefix = 3, kRemoveExtraSpaces = 4, kEscapeSpaces = 5;  // of the normalizer
constexpr uint64_t kBpe = 2;
constexpr std::string_view kTypeIsControl = "\x18\x03";  // field 3 of a piece, CONTROL

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !bytes.empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  fail("not a protocol buffer: a number has no end");
}

void append_varint(std::string& bytes, uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  bytes += static_cast<char>(value);
}

struct Field {
  uint64_t number;
  std::string_view whole;    // with its number and length
  std::string_view payload;  // of a message or string
  uint64_t value;            // of a number
};

Field take_field(std::string_view& bytes) {
  const std::string_view begin = bytes;
  const uint64_t tag = take_varint(bytes), wire_type = tag & 7;
  uint64_t size = wire_type == 1 ? 8 : wire_type == 5 ? 4 : 0;
  const uint64_t value = wire_type == 0 ? take_varint(bytes) : 0;
  if (wire_type == 2) size = take_varint(bytes);
  if (wire_type > 5 || wire_type == 3 || wire_type == 4) fail("not a protocol buffer: wire type {}", wire_type);
  if (size > bytes.size()) fail("not a protocol buffer: a field of {} bytes, {} are left", size, bytes.size());
  const std::string_view payload = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return {tag >> 3, begin.substr(0, begin.size() - bytes.size()), payload, value};
}

}  // namespace

SentencePieceTraits read_traits(std::string_view model) {
  SentencePieceTraits traits;
  while (!model.empty()) {
    const Field section = take_field(model);
    for (std::string_view rest = section.payload; section.number == kTrainer && !rest.empty();) {
      const Field field = take_field(rest);
      if (field.number == kModelType) traits.bpe = field.value == kBpe;
      if (field.number == kSpaceAsSuffix) traits.space_as_suffix = field.value != 0;
      if (field.number == kByteFallback) traits.byte_fallback = field.value != 0;
    }
    for (std::string_view rest = section.payload; section.number == kNormalizer && !rest.empty();) {
      const Field field = take_field(rest);
      if (field.number == kCharacterMap) traits.maps_characters = !field.payload.empty();
      if (field.number == kDummyPrefix) traits.add_dummy_prefix = field.value != 0;
      if (field.number == kRemoveExtraSpaces) traits.remove_extra_spaces = field.value != 0;
      if (field.number == kEscapeSpaces) traits.escape_spaces = field.value != 0;
    }
  }
  return traits;
}

std::string with_control_pieces(std::string_view model, const std::set<int32_t>& ids) {
  std::string changed;
  for (int32_t id = 0; !model.empty();) {
    const Field field = take_field(model);
    if (field.number != kPieces || !ids.contains(id++)) {
      changed += field.whole;
      continue;
    }
    // Of a field that stands twice the last counts.
    append_varint(changed, kPieces << 3 | 2);
    append_varint(changed, field.payload.size() + kTypeIsControl.size());
    (changed += field.payload) += kTypeIsControl;
  }
  return changed;
}

}  // namespace uniattn
