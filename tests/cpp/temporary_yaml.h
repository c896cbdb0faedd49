// YAML text as a file, for the tests of what reads files.
#pragma once
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "config/config.h"

// A file in the system's temporary directory that is gone with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("uniattn-config-" + std::to_string(std::random_device{}()) + "-" + std::to_string(count++) + ".yaml");
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  std::string path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline uniattn::Config load_text(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const TemporaryFile file(text);
  return uniattn::load_config(file.path(), overrides);
}
