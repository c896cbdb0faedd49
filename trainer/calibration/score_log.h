// Numbers that are dear to find, kept in a file as they are found, so that a search that was stopped goes on.
#pragma once
#include <map>
#include <optional>
#include <string>

namespace uniattn {

// A file of JSON lines {"fingerprint", "name", "score"}. Scores of another fingerprint stay in the file and are not
// seen.
class ScoreLog {
 public:
  // Reads the file, if there is one. A last line that was torn by a crash is dropped. Throws Error naming file and line
  // for any other that is not such an entry. Where several ranks have the log, one `writes`.
  ScoreLog(std::string path, std::string fingerprint, bool writes);

  std::optional<double> find(const std::string& name) const;
  // The score is on disk when this returns. Throws Error when it cannot be written.
  void add(const std::string& name, double score);

 private:
  void read();

  std::string path_, fingerprint_;
  bool writes_;
  std::map<std::string, double> scores_;
};

}  // namespace uniattn
