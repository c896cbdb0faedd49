// A directory that is gone when its owner is.
#pragma once
#include <filesystem>
#include <string>

#include "support/error.h"

namespace uniattn {

class ScratchDirectory {
 public:
  ScratchDirectory() : path_((std::filesystem::temp_directory_path() / "uniattn-XXXXXX").string()) {
    if (!mkdtemp(path_.data())) fail("cannot create a temporary directory `{}`", path_);
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace uniattn
