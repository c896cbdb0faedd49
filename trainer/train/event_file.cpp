#include "train/event_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <fstream>

#include "support/error.h"
#include "train/crc32c.h"

namespace uniattn {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");

// A protobuf message under construction. Field numbers are those of TensorFlow's event.proto, summary.proto and
// tensor.proto.
class Message {
 public:
  Message& integer(int field, int64_t value) {
    tag(field, 0);
    varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& real(int field, double value) { return fixed(field, 1, value); }
  Message& real32(int field, float value) { return fixed(field, 5, value); }
  Message& bytes(int field, const std::string& value) {
    tag(field, 2);
    varint(value.size());
    out_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return bytes(field, value.out_); }
  const std::string& str() const { return out_; }

 private:
  void tag(int field, int wire_type) { varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_ += static_cast<char>(value | 0x80);
    out_ += static_cast<char>(value);
  }
  template <class T>
  Message& fixed(int field, int wire_type, T value) {
    tag(field, wire_type);
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  std::string out_;
};

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Message event(int64_t step) {
  Message event;
  event.real(1, now()).integer(2, step);
  return event;
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

// TFRecord masks its checksums, since a record may itself hold some.
std::string masked_crc(std::string_view bytes) {
  const uint32_t masked = std::rotr(crc32c(bytes), 15) + 0xa282ead8;
  return {reinterpret_cast<const char*>(&masked), sizeof masked};
}

}  // namespace

EventFile::EventFile(const std::string& directory, int64_t first_step)
    : path_(fmt::format("{}/events.out.tfevents.{:.6f}.{}.{}", directory, now(), host_name(), ::getpid())) {
  append(event(0).bytes(3, "brain.Event:2").str());  // the version of the format
  constexpr int64_t kStart = 1;
  append(event(first_step).message(7, Message().integer(1, kStart)).str());
}

void EventFile::add_scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  Message summary;
  for (const auto& [tag, value] : values)
    summary.message(1, Message().bytes(1, tag).real32(2, static_cast<float>(value)));
  append(event(step).message(5, summary).str());
}

void EventFile::add_text(int64_t step, const std::string& tag, const std::string& markdown) {
  constexpr int64_t kString = 7;
  const Message shape = Message().message(2, Message().integer(1, 1));  // one dimension of size one
  const Message tensor = Message().integer(1, kString).message(2, shape).bytes(8, markdown);
  const Message metadata = Message().message(1, Message().bytes(1, "text"));  // the plugin that shows it
  append(event(step)
             .message(5, Message().message(1, Message().bytes(1, tag).message(8, tensor).message(9, metadata)))
             .str());
}

void EventFile::append(const std::string& event) {
  const uint64_t size = event.size();
  const std::string length(reinterpret_cast<const char*>(&size), sizeof size);
  std::ofstream out(path_, std::ios::binary | std::ios::app);
  out << length << masked_crc(length) << event << masked_crc(event) << std::flush;
  if (!out) fail("cannot append to `{}`: is the disk full?", path_);
}

}  // namespace uniattn
