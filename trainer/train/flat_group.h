// Parameters of one part of a model that share a role, in one flat buffer that can be divided over the ranks.
#pragma once
#include <c10/core/Event.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "parallel/sharding.h"

namespace uniattn {

enum class Role {
  trained,
  carried,  // frozen now, trained before: its float32 value is kept
  frozen,   // neither gradients nor masters nor moments
};

// Consecutive elements of one trained or carried parameter, those whose float32 state this rank holds.
struct Segment {
  std::string name;
  std::vector<int64_t> shape;  // of the whole parameter
  int64_t begin;               // of the first element in the flattened parameter
  at::Tensor master;           // [n] float32
  at::Tensor gradient;         // [n] float32, on the device that computes; undefined unless trained and reduced
  int64_t kept_begin, kept;    // of the n, those that this rank alone counts and writes; kept may be 0
};

// Elements of the flat buffer for parameters of these sizes: each begins at a multiple of 64, which vector instructions
// and GPU copies like, and the buffer divides into world_size such pieces.
int64_t flat_size(const std::vector<int64_t>& elements, int64_t world_size);

// The memory and the communication of a group. What exists when depends on the strategy (docs/distributed.md); with a
// world of one everything is here always and nothing communicates.
class FlatGroup {
 public:
  // Makes each slot's parameter a view of this group's buffer and fills what this rank holds from `source`.
  FlatGroup(const std::vector<ParameterSlot>& slots, Role role, const Sharding& sharding, const TensorSource& source,
            at::ScalarType dtype, at::Device device);

  Role role() const { return role_; }
  int64_t elements() const { return elements_; }  // of the whole parameters

  // Parameters for compute: they are present from finish_gather() to release(). With other strategies than `full`
  // always; then these do nothing.
  void start_gather();
  void finish_gather();
  void release();

  // Adds the parameters' gradients to this rank's float32 sums and drops them.
  void collect();
  // Sums over the ranks of the group; the result is (`full`: is added to) the gradient of this rank's slice.
  void start_reduce();
  void finish_reduce();
  // Sums the slice over the replicas, once per step.
  Pending reduce_replicas();
  void clear_gradients();

  // Brings the gradient of this rank's slice to where the masters are, which takes time where these are offloaded: it
  // is started for all groups, so that the copy runs beside the update of others.
  void start_fetch();
  // segments(), with the gradients that have arrived.
  std::vector<Segment> finish_fetch();
  // Rounds the masters into the parameters for compute and sends them to the ranks that hold those.
  Pending publish();

  std::vector<Segment> segments() const { return segments_with(gradient_); }

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    int64_t begin, end;    // in the flat buffer
    at::Tensor parameter;  // a view of it
  };
  bool shards_parameters() const { return sharding_.strategy == Shard::full && sharding_.slices.size() > 1; }
  // Whether whole gradient sums stay between steps, so that the slice's gradient is a part of them.
  bool keeps_sums() const { return sharding_.strategy <= Shard::optimizer || sharding_.slices.size() == 1; }
  at::Tensor slice_of(const at::Tensor& flat) const { return flat.narrow(0, slice_begin_, slice_size_); }
  void make_masters();
  std::vector<Segment> segments_with(const at::Tensor& gradient) const;
  void load(const TensorSource& source, const Entry& entry, const TensorSpec& spec);

  Role role_;
  const Sharding& sharding_;
  std::vector<Entry> entries_;
  int64_t elements_ = 0, padded_ = 0, slice_begin_ = 0, slice_size_ = 0;
  at::Tensor flat_;      // [padded] compute dtype; without memory while the group is released
  at::Tensor own_;       // [slice] compute dtype: a part of flat_, or apart from it when parameters are sharded
  at::Tensor master_;    // [slice] float32; own_ itself when that is float32 and nothing is offloaded
  at::Tensor exchange_;  // [slice] float32, offloaded: gradients as they come, parameters as they go
  std::optional<c10::Event> fetched_;
  at::Tensor sums_, gradient_;  // [padded], [slice] float32
  at::Tensor reduced_;          // [slice] float32, under way
  Pending gather_, reduce_;
  bool present_ = true, gathering_ = false;
};

}  // namespace uniattn
