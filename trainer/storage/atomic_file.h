// Files that are either the old version or the whole new one, whatever happens while they are written.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace uniattn {

// Takes a file's bytes in order. Throws Error (disk full, no permission, ...) naming the file.
class FileWriter {
 public:
  virtual ~FileWriter() = default;
  virtual void write(const void* data, size_t bytes) = 0;
};

// Writes what `produce` gives to a temporary file beside `path`, forces it to disk and renames it to `path`.
// When anything throws, `produce` included, the temporary is removed, `path` is as before, and the exception passes on.
// A killed process may leave the temporary, `path`.tmp-<process id>, behind.
void write_file_atomically(const std::string& path, const std::function<void(FileWriter&)>& produce);
void write_file_atomically(const std::string& path, std::string_view bytes);

// Creates `path` and its parents; throws Error when that fails.
void create_directories(const std::string& path);

}  // namespace uniattn
