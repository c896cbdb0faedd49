// safetensors files, memory-mapped: https://huggingface.co/docs/safetensors. Every field of a header is checked before
// use.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace uniattn {

struct TensorInfo {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  size_t begin = 0, end = 0;  // bytes in the file, counted from its start
};

// Where weights come from: one file, a sharded directory, or a stack of them.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // All names, sorted.
  virtual std::vector<std::string> names() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  // Throws Error when the tensor is missing; the message names the source.
  virtual TensorInfo info(const std::string& name) const = 0;
  // A view of the mapped file (keeps the mapping alive; never write to it), a copy where the file's elements are not
  // aligned. Throws Error as info() does, and for BOOL data other than 0 and 1.
  virtual at::Tensor tensor(const std::string& name) const = 0;
  // Gives back the memory of what was read of mapped files. Views stay valid: they are read from the file again when
  // they are used again.
  virtual void release() const {}
  // Elements [begin, end) of the flattened tensor: only these are read, where the source can.
  virtual at::Tensor slice(const std::string& name, int64_t begin, int64_t end) const {
    return tensor(name).flatten().slice(0, begin, end);
  }
};

// One mapped .safetensors file. Dtypes: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL. Throws Error naming the file for: a
// header beyond the file or 100 MB, JSON that is not a header, repeated names, unknown dtypes, offsets that are out of
// range, overlap or leave holes, trailing bytes, and sizes that do not match dtype x shape.
class SafetensorsFile : public TensorSource {
 public:
  explicit SafetensorsFile(const std::string& path);
  std::vector<std::string> names() const override;
  bool contains(const std::string& name) const override;
  TensorInfo info(const std::string& name) const override;
  at::Tensor tensor(const std::string& name) const override;
  void release() const override;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Mapped;
  std::shared_ptr<const Mapped> file_;
};

// The weights of a Hugging Face directory: model.safetensors, or the shards that model.safetensors.index.json names.
// Names in the index may not leave the directory. Only headers are read here.
std::unique_ptr<TensorSource> open_model_tensors(const std::string& directory);

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Writes one file beside `path` and renames it: `path` is either the old file or the whole new one. Tensors may be on
// any device; the data section is aligned to 64 bytes and every tensor to its element size. Throws Error (disk full, no
// permission, a dtype that the format lacks, a repeated name), leaving nothing behind.
void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// Writes model-0000i-of-0000n.safetensors shards of at most `max_shard_bytes` and model.safetensors.index.json, holding
// one shard in memory; a single shard becomes model.safetensors without an index. Until finish() shards have temporary
// names, which the destructor removes. Tensors are held until their shard is written: do not change them before. Throws
// Error as above.
class ShardedWriter {
 public:
  ShardedWriter(std::string directory, size_t max_shard_bytes);
  ~ShardedWriter();
  ShardedWriter(const ShardedWriter&) = delete;
  ShardedWriter& operator=(const ShardedWriter&) = delete;
  void add(const std::string& name, const at::Tensor& tensor);
  void finish();

 private:
  void flush();
  std::string directory_;
  size_t max_shard_bytes_, pending_bytes_ = 0, total_bytes_ = 0;
  NamedTensors pending_;
  std::vector<std::pair<std::string, std::vector<std::string>>> shards_;  // temporary file name, names of its tensors
};

}  // namespace uniattn
