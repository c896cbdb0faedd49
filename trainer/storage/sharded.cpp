// A model's weights over several files with an index, as Hugging Face lays them out.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>

#include "storage/atomic_file.h"
#include "storage/json.h"
#include "storage/safetensors.h"
#include "support/error.h"

namespace uniattn {
namespace {

namespace fs = std::filesystem;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// Tensors by name, each in one of several files.
class IndexedTensors : public TensorSource {
 public:
  IndexedTensors(const std::string& directory, const std::string& index_path) : index_path_(index_path) {
    const nlohmann::json index = read_json(index_path);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
      fail("{}: expected an object with a \"weight_map\" of tensor names to files", index_path);
    }
    std::map<std::string, std::shared_ptr<const SafetensorsFile>> files;
    for (const auto& [name, value] : index["weight_map"].items()) {
      const std::string file = checked_file_name(value, name);
      auto& shard = files[file];
      if (!shard) shard = std::make_shared<SafetensorsFile>((fs::path(directory) / file).string());
      if (!shard->contains(name)) fail("{}: tensor \"{}\" is not in {}, where it should be", index_path, name, file);
      tensors_[name] = shard;
    }
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, shard] : tensors_) names.push_back(name);
    return names;
  }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }
  TensorInfo info(const std::string& name) const override { return shard(name).info(name); }
  at::Tensor tensor(const std::string& name) const override { return shard(name).tensor(name); }
  void release() const override {
    for (const auto& [name, file] : tensors_) file->release();
  }

 private:
  std::string checked_file_name(const nlohmann::json& value, const std::string& name) const {
    const std::string file = value.is_string() ? value.get<std::string>() : "";
    const fs::path path(file);
    const bool leaves = std::any_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
    if (file.empty() || file.find('\0') != std::string::npos || path.is_absolute() || leaves) {
      fail("{}: tensor \"{}\": expected a file inside the directory, got {}", index_path_, name, value.dump());
    }
    return file;
  }

  const SafetensorsFile& shard(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("{}: there is no tensor \"{}\"", index_path_, name);
    return *found->second;
  }

  std::string index_path_;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> tensors_;
};

void rename_file(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail("cannot rename '{}' to '{}': {}", from.string(), to.string(), error.message());
}

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) fail("cannot remove '{}': {}", path.string(), error.message());
}

}  // namespace

std::unique_ptr<TensorSource> open_model_tensors(const std::string& directory) {
  const fs::path single = fs::path(directory) / kSingleFile, index = fs::path(directory) / kIndexFile;
  if (fs::exists(single)) return std::make_unique<SafetensorsFile>(single.string());
  if (fs::exists(index)) return std::make_unique<IndexedTensors>(directory, index.string());
  fail("no weights in '{}': expected {} or {} (other formats, pickled ones above all, are not read)", directory,
       kSingleFile, kIndexFile);
}

ShardedWriter::ShardedWriter(std::string directory, size_t max_shard_bytes)
    : directory_(std::move(directory)), max_shard_bytes_(max_shard_bytes) {
  create_directories(directory_);
}

ShardedWriter::~ShardedWriter() {
  std::error_code ignored;
  for (const auto& [file, names] : shards_) fs::remove(fs::path(directory_) / file, ignored);
}

void ShardedWriter::add(const std::string& name, const at::Tensor& tensor) {
  if (!pending_.empty() && pending_bytes_ + tensor.nbytes() > max_shard_bytes_) flush();
  pending_.emplace_back(name, tensor);
  pending_bytes_ += tensor.nbytes();
  total_bytes_ += tensor.nbytes();
}

void ShardedWriter::flush() {
  const std::string file = fmt::format("model-{:05}.unfinished", shards_.size() + 1);
  write_safetensors((fs::path(directory_) / file).string(), pending_, {{"format", "pt"}});
  auto& [shard, names] = shards_.emplace_back(file, std::vector<std::string>());
  for (const auto& [name, tensor] : pending_) names.push_back(name);
  pending_.clear();
  pending_bytes_ = 0;
}

void ShardedWriter::finish() {
  if (!pending_.empty() || shards_.empty()) flush();
  const fs::path directory = directory_;
  if (shards_.size() == 1) {
    remove_file(directory / kIndexFile);  // of an earlier, larger model
    rename_file(directory / shards_[0].first, directory / kSingleFile);
    shards_.clear();
    return;
  }
  remove_file(directory / kSingleFile);
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < shards_.size(); ++i) {
    auto& [file, names] = shards_[i];
    const std::string final_name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
    for (const std::string& name : names) {
      if (weight_map.contains(name)) fail("tensor \"{}\" was given twice to '{}'", name, directory_);
      weight_map[name] = final_name;
    }
    rename_file(directory / file, directory / final_name);
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", std::move(weight_map)}};
  write_file_atomically((directory / kIndexFile).string(), index.dump(2) + "\n");
  shards_.clear();
}

}  // namespace uniattn
