#include "data/shards.h"

#include <algorithm>
#include <filesystem>

#include "data/manifest.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "storage/safetensors.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;

struct Shard {
  std::vector<at::Tensor> keep_mapped;
  std::span<const int32_t> tokens, source;
  std::span<const uint8_t> supervised;
  std::span<const int64_t> offsets;
  int64_t first_document = 0;
};

Manifest read_manifest(const std::string& directory) {
  const fs::path path = fs::path(directory) / kManifestFile;
  if (!fs::exists(path))
    fail("no prepared data in '{}': {} is missing; run `uniattn prepare`", directory, kManifestFile);
  try {
    return read_json(path.string()).get<Manifest>();
  } catch (const nlohmann::json::exception& error) {
    fail("{}: not a manifest of prepared data ({}); delete the directory to prepare it again", path.string(),
         error.what());
  }
}

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  fail("{}: {}; delete its directory to prepare the data again", path, what);
}

void check_unaltered(const std::string& path, const ShardEntry& entry) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) refuse(path, error.message());
  if (bytes != entry.bytes) {
    refuse(path, fmt::format("{} bytes, but {} were written: it was cut off or altered", bytes, entry.bytes));
  }
  if (file_hash(path) != entry.hash) refuse(path, "its contents are not what was written: it was altered");
}

template <class T>
std::span<const T> read_column(const SafetensorsFile& file, const char* name, const std::string& path, Shard& shard) {
  const at::Tensor column = file.tensor(name);
  if (column.scalar_type() != c10::CppTypeToScalarType<T>::value || column.dim() != 1) {
    refuse(path, fmt::format("\"{}\" does not have the type of a token shard", name));
  }
  shard.keep_mapped.push_back(column);
  return {column.const_data_ptr<T>(), static_cast<size_t>(column.numel())};
}

Shard open_shard(const std::string& path, const ShardEntry& entry, size_t sources) {
  check_unaltered(path, entry);
  const SafetensorsFile file(path);
  Shard shard;
  shard.tokens = read_column<int32_t>(file, "tokens", path, shard);
  shard.source = read_column<int32_t>(file, "source", path, shard);
  shard.supervised = read_column<uint8_t>(file, "supervised", path, shard);
  shard.offsets = read_column<int64_t>(file, "offsets", path, shard);
  const auto documents = static_cast<size_t>(entry.documents), tokens = static_cast<size_t>(entry.tokens);
  const bool sizes = shard.tokens.size() == tokens && shard.supervised.size() == tokens &&
                     shard.source.size() == documents && shard.offsets.size() == documents + 1;
  const bool offsets = sizes && shard.offsets.front() == 0 && shard.offsets.back() == entry.tokens &&
                       std::is_sorted(shard.offsets.begin(), shard.offsets.end());
  const auto known_source = [&](int32_t source) { return source >= 0 && static_cast<size_t>(source) < sources; };
  if (!offsets || !std::all_of(shard.source.begin(), shard.source.end(), known_source)) {
    refuse(path, "documents, offsets or sources contradict each other or the manifest");
  }
  return shard;
}

}  // namespace

struct TokenShards::Data {
  Manifest manifest;
  std::vector<Shard> shards;
  int64_t documents = 0;

  // The shard of document i, and the document's number in it.
  std::pair<const Shard&, size_t> find(int64_t i) const {
    const auto after = std::upper_bound(shards.begin(), shards.end(), i,
                                        [](int64_t value, const Shard& shard) { return value < shard.first_document; });
    const Shard& shard = *std::prev(after);
    return {shard, static_cast<size_t>(i - shard.first_document)};
  }
};

TokenShards::TokenShards(const std::string& directory) {
  auto data = std::make_shared<Data>();
  data->manifest = read_manifest(directory);
  for (const ShardEntry& entry : data->manifest.shards) {
    const std::string expected = shard_file_name(data->shards.size());
    if (entry.file != expected) fail("{}/{}: expected {}, got {}", directory, kManifestFile, expected, entry.file);
    const std::string path = (fs::path(directory) / entry.file).string();
    Shard shard = open_shard(path, entry, data->manifest.sources.size());
    shard.first_document = data->documents;
    data->documents += entry.documents;
    data->shards.push_back(std::move(shard));
  }
  data_ = std::move(data);
}

int64_t TokenShards::size() const {
  return data_->documents;
}

std::vector<Document> TokenShards::documents() const {
  std::vector<Document> all;
  for (int64_t i = 0; i < size(); ++i) all.push_back(document(i));
  return all;
}

Document TokenShards::document(int64_t i) const {
  const auto [shard, at] = data_->find(i);
  const auto begin = static_cast<size_t>(shard.offsets[at]),
             length = static_cast<size_t>(shard.offsets[at + 1]) - begin;
  return {shard.tokens.subspan(begin, length), shard.supervised.subspan(begin, length)};
}

double TokenShards::weight(int64_t i) const {
  return data_->manifest.sources[static_cast<size_t>(source(i))].weight;
}

int32_t TokenShards::source(int64_t i) const {
  const auto [shard, at] = data_->find(i);
  return shard.source[at];
}

int64_t TokenShards::tokens() const {
  return data_->manifest.counts.tokens;
}
int64_t TokenShards::supervised() const {
  return data_->manifest.counts.supervised;
}
const PrepareCounts& TokenShards::counts() const {
  return data_->manifest.counts;
}
const std::vector<SourceEntry>& TokenShards::sources() const {
  return data_->manifest.sources;
}
const std::string& TokenShards::hash() const {
  return data_->manifest.hash;
}

}  // namespace uniattn
