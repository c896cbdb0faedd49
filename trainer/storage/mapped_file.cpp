#include "storage/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "support/error.h"

namespace uniattn {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  const Descriptor file{::open(path_.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail("cannot open '{}': {}", path_, std::strerror(errno));
  struct stat status;
  if (::fstat(file.fd, &status) != 0) fail("cannot read '{}': {}", path_, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("cannot read '{}': expected a regular file", path_);
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;  // mmap refuses empty ranges
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapped == MAP_FAILED) fail("cannot map '{}' ({} bytes): {}", path_, size_, std::strerror(errno));
  data_ = static_cast<const char*>(mapped);
}

void MappedFile::release(size_t size) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  if (const size_t whole = size / page * page; whole > 0) ::madvise(const_cast<char*>(data_), whole, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

}  // namespace uniattn
