// A file's bytes, mapped read-only: nothing is read before it is used.
#pragma once
#include <string>
#include <string_view>

namespace uniattn {

class MappedFile {
 public:
  // Throws Error naming `path` when it is missing, is not a regular file, or may not be read.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Valid as long as this object.
  std::string_view bytes() const { return {data_, size_}; }
  // Gives back the memory of the first `size` bytes; they are read from the file again when they are used again.
  void release(size_t size) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace uniattn
