// TensorBoard event files: TFRecord framing around Event messages in protobuf's wire format.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace uniattn {

class EventFile {
 public:
  // Starts a new file in `directory`. TensorBoard reads all files there and forgets what older ones say about steps
  // after `done_steps`: a killed run had gone further than what it resumes from. Throws Error when it cannot be
  // written.
  EventFile(const std::string& directory, int64_t done_steps);

  // One point of each curve; each call is on its way to the disk when it returns.
  void add_scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  void add_text(int64_t step, const std::string& tag, const std::string& markdown);

 private:
  void append(const std::string& event);
  std::string path_;
};

}  // namespace uniattn
