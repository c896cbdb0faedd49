// The parameters of a model in training: present where they are computed with, in float32 where they are updated.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/snapshot.h"
#include "model/decoder.h"
#include "parallel/sharding.h"
#include "train/flat_group.h"

namespace uniattn {

// One flat group per part of the model and role. A pass over the model tells it, as the model's observer, when parts
// begin and end; hooks on the stream do so for backward. A part's gradients are moved to float32 sums as soon as its
// backward is over, and communication runs beside the computation of the next part.
class Parameters : public PartObserver {
 public:
  using RoleOf = std::function<Role(const std::string& name)>;

  // Fills `model`, whose config and plan are set, from `source`: each rank reads what it holds. Model and sharding must
  // outlive this object.
  Parameters(Decoder& model, const TensorSource& source, const RoleOf& role_of, const Sharding& sharding,
             at::ScalarType dtype, at::Device device);
  ~Parameters() override;
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  int64_t count() const;  // trained elements, of the whole model

  // A step is begin_step(), then for each micro-batch begin_micro_batch(), forward and backward, end_micro_batch(). All
  // ranks do so equally often. Gradients are summed over the ranks in the last one; with `full` in each, because whole
  // sums are what it is to avoid.
  void begin_step();
  void begin_micro_batch(bool last);
  void end_micro_batch();

  // Of the whole gradient, over all ranks: the same on each.
  double gradient_norm(ProcessGroup& group) const;
  void scale_gradients(double factor);
  // Calls `update` with the segments of each trained part, all on the masters' device, and makes the new masters the
  // parameters of all ranks. Copies from and to offloaded masters, and communication, run beside other parts' updates.
  void update(const std::function<void(const std::vector<Segment>&)>& update);

  // What this rank updates, in the same order every time; `role` trained or carried.
  std::vector<Segment> segments(Role role) const;

  void enter(int64_t part) override;
  void leave(int64_t part, const at::Tensor& stream, const at::Tensor& inner) override;

 private:
  using Groups = std::vector<FlatGroup*>;
  int64_t last_part() const { return static_cast<int64_t>(parts_.size()) - 1; }
  Groups needed_by(int64_t part) const;
  void start_gather(int64_t part);
  void gather(int64_t part);
  void release(int64_t part);
  void begin_backward(int64_t part);
  void end_backward(int64_t part);
  void advance_reduction(FlatGroup* next);

  Decoder& model_;
  std::vector<std::unique_ptr<FlatGroup>> groups_;
  std::vector<Groups> parts_;  // groups by part
  Groups trained_;
  std::vector<bool> needs_backward_;  // by part, in the pass under way
  std::vector<bool> done_;            // by part: its backward is over
  bool last_ = false, reduces_each_, one_slice_;
  // One group each at a time: the buffers are as large as it.
  FlatGroup* reducing_ = nullptr;
  Pending replicating_;
};

// For a model that is only computed with: nothing of it is trained, and under `full` no rank holds it.
std::unique_ptr<Parameters> frozen_parameters(Decoder& model, const TensorSource& source, const Sharding& sharding,
                                              at::ScalarType dtype, at::Device device);

// The elements of `values`, which belongs to `segment`, that this rank writes to a snapshot under `name`.
TensorPart kept_part(const Segment& segment, const std::string& name, const at::Tensor& values);

}  // namespace uniattn
