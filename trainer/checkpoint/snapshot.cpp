#include "checkpoint/snapshot.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "storage/atomic_file.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kWeightsFile = "weights.safetensors";
constexpr const char* kMoments = "moments.safetensors";
constexpr const char* kManifest = "manifest.json";
constexpr std::string_view kPrefix = "step-";

// N of "step-N", or nothing for another name.
std::optional<int64_t> step_of(const std::string& name) {
  int64_t step = 0;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  return error == std::errc{} && end == name.data() + name.size() ? std::optional(step) : std::nullopt;
}

json describe_file(const fs::path& path) {
  return {{"size", fs::file_size(path)}, {"hash", file_hash(path)}};
}

// The manifest's state, after every file it names has been checked against it.
json read_manifest(const fs::path& path) {
  const json manifest = read_json(path / kManifest);
  try {
    if (manifest.at("version") != 1)
      fail("snapshot `{}` has version {}, expected 1", path.string(), manifest.at("version").dump());
    for (const auto& [name, expected] : manifest.at("files").items()) {
      const fs::path file = path / name;
      if (!fs::exists(file)) fail("snapshot file `{}` is missing", file.string());
      if (describe_file(file) != expected)
        fail(
            "snapshot file `{}` is torn or altered: size or hash is not what {} says; remove the folder to continue "
            "from the one before",
            file.string(), kManifest);
    }
    return manifest.at("state");
  } catch (const json::exception& error) {
    fail("snapshot `{}`: {} is damaged: {}", path.string(), kManifest, error.what());
  }
}

NamedTensors load_all(const fs::path& file) {
  const SafetensorsFile source(file);
  NamedTensors tensors;
  for (const std::string& name : source.names()) tensors.emplace_back(name, source.tensor(name).clone());
  return tensors;
}

}  // namespace

void write_snapshot(const std::string& directory, int64_t step, const Snapshot& snapshot) {
  const fs::path final_path = fs::path(directory) / fmt::format("{}{}", kPrefix, step);
  const fs::path building = fs::path(final_path).concat(".partial");
  try {
    fs::remove_all(building);
    fs::create_directories(building);
    write_safetensors(building / kWeightsFile, snapshot.weights);
    write_safetensors(building / kMoments, snapshot.moments);
    json manifest{{"version", 1}, {"state", snapshot.state}, {"files", json::object()}};
    for (const char* name : {kWeightsFile, kMoments}) manifest["files"][name] = describe_file(building / name);
    write_file_atomically(building / kManifest, manifest.dump(2) + "\n");
    fs::remove_all(final_path);
    fs::rename(building, final_path);
  } catch (const fs::filesystem_error& error) {
    fail("writing snapshot `{}` failed: {}; the snapshots before it are untouched", final_path.string(), error.what());
  }
}

std::vector<std::pair<int64_t, std::string>> list_snapshots(const std::string& directory) {
  std::vector<std::pair<int64_t, std::string>> found;
  if (!fs::is_directory(directory)) return found;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory))
    if (const auto step = step_of(entry.path().filename()); step && fs::exists(entry.path() / kManifest))
      found.emplace_back(*step, entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<std::string> newest_snapshot(const std::string& directory) {
  const auto snapshots = list_snapshots(directory);
  if (snapshots.empty()) return std::nullopt;
  return snapshots.back().second;
}

Snapshot read_snapshot(const std::string& path) {
  json state = read_manifest(path);
  return {std::move(state), load_all(fs::path(path) / kWeightsFile), load_all(fs::path(path) / kMoments)};
}

std::shared_ptr<const TensorSource> snapshot_weights(const std::string& path) {
  read_manifest(path);
  return std::make_shared<SafetensorsFile>((fs::path(path) / kWeightsFile).string());
}

}  // namespace uniattn
