// One process at a time: held from construction to destruction, and let go by the system when its process dies.
#pragma once
#include <string>

namespace uniattn {

class FileLock {
 public:
  // Creates `path` if need be and waits for other holders. Throws Error when it cannot be created or locked.
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_;
};

}  // namespace uniattn
