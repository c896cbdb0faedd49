#include "commands/options.h"

#include <fmt/format.h>

namespace uniattn {

void ConfigOptions::add_to(CLI::App& command) {
  command.add_option("config", path, "YAML configuration (docs/configuration.md)")->required();
  command.add_option("overrides", overrides, "key.path=value, in place of what the file says")->type_name("KEY=VALUE");
  command.add_flag("--dry-run", dry_run,
                   "Check the configuration, data and tensors, print the memory needed, and stop");
  command.add_flag("--json", json, "Print the result as one JSON object");
}

void RunOptions::add_to(CLI::App& command) {
  ConfigOptions::add_to(command);
  command.add_flag("--accept-changes", accept_changes,
                   "Go on although data or training settings are not those that the run was started with");
}

void print_result(bool json, const nlohmann::ordered_json& result, const std::string& text) {
  fmt::print("{}\n", json ? result.dump() : text);
}

}  // namespace uniattn
