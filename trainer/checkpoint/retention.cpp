#include "checkpoint/retention.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>

#include "checkpoint/snapshot.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;

// Infinite where training did not measure one.
double held_out_loss(const fs::path& snapshot) {
  const nlohmann::json state = read_json(snapshot / "manifest.json").value("state", nlohmann::json::object());
  return state.value("held_out_loss", std::numeric_limits<double>::infinity());
}

// The manifest goes first: without it a folder is no snapshot.
void remove_snapshot(const fs::path& snapshot) {
  fs::remove(snapshot / "manifest.json");
  fs::remove_all(snapshot);
}

std::set<fs::path> snapshots_to_keep(const std::vector<fs::path>& oldest_first, const Retention& keep) {
  const auto last = std::min<size_t>(static_cast<size_t>(keep.last), oldest_first.size());
  std::set<fs::path> kept(oldest_first.end() - static_cast<ptrdiff_t>(last), oldest_first.end());
  if (keep.best == 0) return kept;
  std::vector<std::pair<double, fs::path>> by_loss;
  for (const fs::path& snapshot : oldest_first) by_loss.emplace_back(held_out_loss(snapshot), snapshot);
  std::erase_if(by_loss, [](const auto& entry) { return !(entry.first < std::numeric_limits<double>::infinity()); });
  std::stable_sort(by_loss.begin(), by_loss.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < by_loss.size() && i < static_cast<size_t>(keep.best); ++i) kept.insert(by_loss[i].second);
  return kept;
}

}  // namespace

void prune_snapshots(const std::string& directory, const Retention& keep) {
  std::vector<fs::path> snapshots;
  for (const auto& [step, path] : list_snapshots(directory)) snapshots.emplace_back(path);
  const std::set<fs::path> kept = snapshots_to_keep(snapshots, keep);
  try {
    for (const fs::path& snapshot : snapshots)
      if (!kept.contains(snapshot)) remove_snapshot(snapshot);
    std::vector<fs::path> unfinished;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory))
      if (entry.path().extension() == ".partial" || !fs::exists(entry.path() / "manifest.json"))
        unfinished.push_back(entry.path());
    for (const fs::path& folder : unfinished) fs::remove_all(folder);
  } catch (const fs::filesystem_error& error) {
    fail("removing old snapshots in `{}` failed: {}; the newest is untouched", directory, error.what());
  }
}

}  // namespace uniattn
