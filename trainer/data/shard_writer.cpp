#include "data/shard_writer.h"

#include <ATen/ops/from_blob.h>

#include <filesystem>

#include "storage/hash.h"
#include "storage/safetensors.h"

namespace uniattn {
namespace {

template <class T>
at::Tensor view(std::vector<T>& values) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, c10::CppTypeToScalarType<T>::value);
}

}  // namespace

std::string shard_file_name(size_t index) {
  return fmt::format("shard-{:05}.safetensors", index);
}

ShardWriter::ShardWriter(std::string directory, size_t max_tokens_per_shard)
    : directory_(std::move(directory)), max_tokens_(max_tokens_per_shard) {}

void ShardWriter::add(const Document& document, int32_t source) {
  if (!sources_.empty() && tokens_.size() + document.tokens.size() > max_tokens_) flush();
  tokens_.insert(tokens_.end(), document.tokens.begin(), document.tokens.end());
  supervised_.insert(supervised_.end(), document.supervised.begin(), document.supervised.end());
  offsets_.push_back(static_cast<int64_t>(tokens_.size()));
  sources_.push_back(source);
}

void ShardWriter::flush() {
  const std::string file = shard_file_name(shards_.size()), path = directory_ + "/" + file;
  write_safetensors(path, {{"tokens", view(tokens_)},
                           {"supervised", view(supervised_)},
                           {"offsets", view(offsets_)},
                           {"source", view(sources_)}});
  shards_.push_back({.file = file,
                     .bytes = std::filesystem::file_size(path),
                     .hash = file_hash(path),
                     .documents = static_cast<int64_t>(sources_.size()),
                     .tokens = static_cast<int64_t>(tokens_.size())});
  tokens_.clear(), supervised_.clear(), sources_.clear();
  offsets_ = {0};
}

std::vector<ShardEntry> ShardWriter::finish() {
  if (!sources_.empty()) flush();
  return std::move(shards_);
}

}  // namespace uniattn
