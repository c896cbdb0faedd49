// Options that several commands have.
#pragma once
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace uniattn {

// CONFIG [key.path=value ...] [--dry-run] [--json]
struct ConfigOptions {
  std::string path;
  std::vector<std::string> overrides;
  bool dry_run = false;
  bool json = false;

  void add_to(CLI::App& command);
};

// The same for commands that work in the run directory, with [--accept-changes], and what --dry-run is to imagine:
// [--world-size N] [--device NAME].
struct RunOptions : ConfigOptions {
  bool accept_changes = false;
  int64_t world_size = 1;
  std::string device;

  void add_to(CLI::App& command);
};

// Results go to stdout: as one JSON object with `json`, else as `text`.
void print_result(bool json, const nlohmann::ordered_json& result, const std::string& text);

}  // namespace uniattn
