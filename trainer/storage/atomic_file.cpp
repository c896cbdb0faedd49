#include "storage/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "support/error.h"

namespace uniattn {
namespace {

[[noreturn]] void fail_writing(const std::string& path, int error) {
  const char* advice = "";
  if (error == ENOSPC || error == EDQUOT) advice = "; free some space or choose another directory";
  if (error == EACCES || error == EPERM || error == EROFS) advice = "; choose a directory you may write to";
  if (error == ENOENT) advice = "; its directory does not exist";
  fail("cannot write '{}': {}{}", path, std::strerror(error), advice);
}

class TemporaryFile : public FileWriter {
 public:
  explicit TemporaryFile(const std::string& target)
      : target_(target), path_(fmt::format("{}.tmp-{}", target, ::getpid())) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) fail_writing(target_, errno);
  }

  ~TemporaryFile() override {
    if (fd_ >= 0) ::close(fd_);
    if (!renamed_) ::unlink(path_.c_str());
  }

  void write(const void* data, size_t bytes) override {
    auto* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(fd_, next, std::min<size_t>(bytes, 1 << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_writing(target_, errno);
      next += written;
      bytes -= static_cast<size_t>(written);
    }
  }

  void commit() {
    if (::fsync(fd_) != 0) fail_writing(target_, errno);
    const int closed = ::close(fd_);
    fd_ = -1;
    if (closed != 0) fail_writing(target_, errno);
    if (std::rename(path_.c_str(), target_.c_str()) != 0) fail_writing(target_, errno);
    renamed_ = true;
    sync_directory();
  }

 private:
  // The rename itself is on disk only once the directory is. Some file systems cannot sync one (EINVAL): nothing to do
  // there.
  void sync_directory() const {
    const auto parent = std::filesystem::path(target_).parent_path();
    const int fd = ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) fail_writing(target_, errno);
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    if (error != 0 && error != EINVAL) fail_writing(target_, error);
  }

  std::string target_, path_;
  int fd_ = -1;
  bool renamed_ = false;
};

}  // namespace

void write_file_atomically(const std::string& path, const std::function<void(FileWriter&)>& produce) {
  TemporaryFile file(path);
  produce(file);
  file.commit();
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  write_file_atomically(path, [&](FileWriter& file) { file.write(bytes.data(), bytes.size()); });
}

void create_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail_writing(path, error.value());
}

}  // namespace uniattn
