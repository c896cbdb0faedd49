#include "calibration/scratch.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "support/error.h"

namespace uniattn {
namespace {

[[noreturn]] void fail_in(const std::string& directory) {
  fail("no scratch file of the calibration could be made in `{}`: {}", directory, std::strerror(errno));
}

}  // namespace

at::Tensor to_scratch(const at::Tensor& tensor, const std::string& directory) {
  if (!tensor.device().is_cpu() || tensor.numel() == 0) return tensor;
  const size_t bytes = tensor.nbytes();
  std::string name = directory + "/scratch-XXXXXX";
  const int file = mkstemp(name.data());
  if (file < 0) fail_in(directory);
  unlink(name.c_str());
  // Space is reserved now: a full disk must not become a SIGBUS later.
  errno = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  void* memory = errno == 0 ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  const int error = errno;
  close(file);
  errno = error;
  if (memory == MAP_FAILED) fail_in(directory);
  at::Tensor copy = at::from_blob(
      memory, tensor.sizes(), [bytes](void* begin) { munmap(begin, bytes); }, tensor.options());
  copy.copy_(tensor);
  madvise(memory, bytes, MADV_DONTNEED);  // it stays in the page cache as long as nothing else needs the memory
  return copy;
}

}  // namespace uniattn
