// The log: lines on stderr, and in a run's log.txt once set_file was called. Results go to stdout, never here.
#pragma once
#include <string>
#include <string_view>

namespace uniattn::log {

void info(std::string_view message);
void warn(std::string_view message);
void error(std::string_view message);

// Appends everything that follows to `path` as well.
void set_file(const std::string& path);

// A line for that file alone; nothing without one.
void file_only(std::string_view message);

// Other ranks than 0 keep quiet unless something is wrong.
void only_warnings();

}  // namespace uniattn::log
