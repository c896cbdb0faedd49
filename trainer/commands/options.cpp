#include "commands/options.h"

#include <fmt/format.h>

#include "train/step_time.h"

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
  CLI::Option* dry = command.get_option("--dry-run");
  command.add_option("--world-size", world_size, "With --dry-run: memory and traffic for so many ranks")
      ->check(CLI::PositiveNumber)
      ->needs(dry);
  std::vector<std::string> devices;
  for (const DeviceSheet& sheet : known_devices()) devices.push_back(sheet.name);
  command.add_option("--device", device, "With --dry-run: also the step time on such GPUs (docs/scaling.md)")
      ->check(CLI::IsMember(devices))
      ->needs(dry);
}

void print_result(bool json, const nlohmann::ordered_json& result, const std::string& text) {
  fmt::print("{}\n", json ? result.dump() : text);
}

}  // namespace uniattn
