// The two kinds of errors a user sees. main() prints what() to stderr and turns the kind into the exit code.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace uniattn {

// Something went wrong while working: bad data, a damaged file, a full disk. Exit code 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The request itself is wrong: an unknown option or key, a value out of range, a plan that does not fit. Exit code 2.
struct UsageError : Error {
  using Error::Error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace uniattn
