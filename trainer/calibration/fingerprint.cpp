#include "calibration/fingerprint.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>

#include "storage/hash.h"

namespace uniattn {

std::string calibration_fingerprint(const ModelDirectory& model, const TokenShards& data,
                                    const CalibrationOptions& options) {
  Hasher hasher;
  const auto add = [&](const std::string& part) { hasher.update(part + "\n"); };
  add(model.json.dump());
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(model.path))
    if (entry.path().extension() == ".safetensors")
      files[entry.path().filename()] =
          fmt::format("{} {}", entry.file_size(), entry.last_write_time().time_since_epoch().count());
  for (const auto& [name, identity] : files) add(name + " " + identity);
  add(data.hash());
  const FitTargets& fit = options.fit;
  add(fmt::format("{} {} {} {} {} {} {} {}", fit.head_map, fit.value, fit.output, fit.compensation,
                  options.ridge ? fmt::format("{}", *options.ridge) : "auto", options.held_out, options.ranks.energy,
                  options.ranks.parameters));
  return hasher.hex();
}

}  // namespace uniattn
