#include "checkpoint/snapshot.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "checkpoint/tensor_parts.h"
#include "storage/atomic_file.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr std::string_view kPrefix = "step-";
constexpr const char* kUnfinished = ".partial";
constexpr int kVersion = 2;

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

json read_manifest(const fs::path& path) {
  json manifest = read_json(path / kManifest);
  try {
    if (manifest.at("version") != kVersion)
      fail(
          "snapshot `{}` has version {}, expected {}: go on with the version of this program that wrote it, or remove "
          "it",
          path.string(), manifest.at("version").dump(), kVersion);
    for (const char* key : {"state", "files", "weights", "moments"})
      for (const auto& [name, value] : manifest.at(key).items())
        if (key != std::string("state") && fs::path(name).filename() != name)
          fail("snapshot `{}`: {} names a file outside the folder: `{}`", path.string(), kManifest, name);
    return manifest;
  } catch (const json::exception& error) {
    fail("snapshot `{}`: {} is damaged: {}", path.string(), kManifest, error.what());
  }
}

void check_file(const fs::path& file, const json& expected) {
  if (!fs::exists(file)) fail("snapshot file `{}` is missing", file.string());
  if (describe_file(file) != expected)
    fail(
        "snapshot file `{}` is torn or altered: size or hash is not what {} says; remove the folder to continue from "
        "the one before",
        file.string(), kManifest);
}

OpenSnapshot open_checked(const fs::path& path, const json& manifest) {
  return {.state = manifest.at("state"),
          .weights = open_parts(path.string(), manifest.at("weights")),
          .moments = open_parts(path.string(), manifest.at("moments"))};
}

// The name that one of `count` ranks gives its file: as Hugging Face numbers shards.
std::string file_name(const std::string& kind, int64_t rank, int64_t count) {
  if (count == 1) return kind + ".safetensors";
  return fmt::format("{}-{:05}-of-{:05}.safetensors", kind, rank + 1, count);
}

// Writes one rank's files and returns its share of the manifest.
json write_own_files(const fs::path& directory, const SnapshotParts& parts, int64_t rank, int64_t count) {
  json share{{"files", json::object()}};
  for (const auto& [kind, tensors] : {std::pair("weights", &parts.weights), std::pair("moments", &parts.moments)}) {
    const std::string name = file_name(kind, rank, count);
    share[kind][name] = write_parts(directory / name, *tensors);
    share["files"][name] = describe_file(directory / name);
  }
  return share;
}

void complete(const fs::path& building, const fs::path& final_path, const json& state,
              const std::vector<std::string>& shares) {
  json manifest{{"version", kVersion}, {"state", state}};
  for (const std::string& share : shares) manifest.merge_patch(json::parse(share));
  write_file_atomically(building / kManifest, manifest.dump(2) + "\n");
  fs::remove_all(final_path);
  fs::rename(building, final_path);
}

template <class Work>
void on_files(const fs::path& snapshot, Work work) {
  try {
    work();
  } catch (const fs::filesystem_error& error) {
    fail("writing snapshot `{}` failed: {}; the snapshots before it are untouched", snapshot.string(), error.what());
  }
}

TensorParts whole_parts(const NamedTensors& tensors) {
  TensorParts parts;
  for (const auto& [name, tensor] : tensors)
    parts.push_back({.name = name, .shape = tensor.sizes().vec(), .begin = 0, .values = tensor.detach().flatten()});
  return parts;
}

NamedTensors load_all(const TensorSource& source) {
  NamedTensors tensors;
  for (const std::string& name : source.names()) tensors.emplace_back(name, source.tensor(name).clone());
  return tensors;
}

}  // namespace

void write_snapshot(const std::string& directory, int64_t step, const SnapshotParts& parts, ProcessGroup& group) {
  const fs::path final_path = fs::path(directory) / fmt::format("{}{}", kPrefix, step);
  const fs::path building = fs::path(final_path).concat(kUnfinished);
  const bool first = group.rank() == 0;
  on_files(final_path, [&] {
    if (first) fs::remove_all(building), fs::create_directories(building);
    group.barrier();
    const json own = write_own_files(building, parts, group.rank(), group.world_size());
    const std::vector<std::string> shares = group.all_gather(own.dump());
    if (first) complete(building, final_path, parts.state, shares);
  });
  group.barrier();  // nobody goes on, or ends, before the snapshot is whole
}

void write_snapshot(const std::string& directory, int64_t step, const Snapshot& snapshot) {
  const fs::path final_path = fs::path(directory) / fmt::format("{}{}", kPrefix, step);
  const fs::path building = fs::path(final_path).concat(kUnfinished);
  on_files(final_path, [&] {
    fs::remove_all(building);
    fs::create_directories(building);
    const SnapshotParts parts{snapshot.state, whole_parts(snapshot.weights), whole_parts(snapshot.moments)};
    complete(building, final_path, parts.state, {write_own_files(building, parts, 0, 1).dump()});
  });
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

OpenSnapshot open_snapshot(const std::string& path) {
  const json manifest = read_manifest(path);
  for (const auto& [name, expected] : manifest.at("files").items()) check_file(fs::path(path) / name, expected);
  return open_checked(path, manifest);
}

OpenSnapshot open_snapshot(const std::string& path, ProcessGroup& group) {
  const json manifest = read_manifest(path);
  int64_t number = 0;
  for (const auto& [name, expected] : manifest.at("files").items())
    if (number++ % group.world_size() == group.rank()) check_file(fs::path(path) / name, expected);
  group.barrier();  // no rank reads a file that another has found damaged
  return open_checked(path, manifest);
}

Snapshot read_snapshot(const std::string& path) {
  const OpenSnapshot open = open_snapshot(path);
  return {open.state, load_all(*open.weights), load_all(*open.moments)};
}

}  // namespace uniattn
