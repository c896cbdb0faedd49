// A value that cannot be used, under its dotted key. load_config adds the place in the file.
#pragma once
#include <string>
#include <utility>

#include "support/error.h"

namespace uniattn {

struct InvalidKey : UsageError {
  InvalidKey(std::string dotted_key, std::string what_is_wrong)
      : UsageError(dotted_key + ": " + what_is_wrong), key(std::move(dotted_key)), reason(std::move(what_is_wrong)) {}
  std::string key, reason;
};

template <class... Args>
[[noreturn]] void invalid(const std::string& key, fmt::format_string<Args...> format, Args&&... args) {
  throw InvalidKey(key, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace uniattn
