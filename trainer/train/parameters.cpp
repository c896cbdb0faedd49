#include "train/parameters.h"

#include <ATen/ATen.h>

#include <cmath>

namespace uniattn {

Parameters::Parameters(Decoder& model, const TensorSource& source, const RoleOf& role_of, const Sharding& sharding,
                       at::ScalarType dtype, at::Device device)
    : model_(model), reduces_each_(sharding.strategy == Shard::full), one_slice_(sharding.slices.size() == 1) {
  for (const std::vector<ParameterSlot>& slots : model.parts()) {
    Groups& part = parts_.emplace_back();
    for (const Role role : {Role::trained, Role::carried, Role::frozen}) {
      std::vector<ParameterSlot> members;
      for (const ParameterSlot& slot : slots)
        if (role_of(slot.name) == role) members.push_back(slot);
      if (members.empty()) continue;
      groups_.push_back(std::make_unique<FlatGroup>(members, role, sharding, source, dtype, device));
      part.push_back(groups_.back().get());
      if (role == Role::trained) trained_.push_back(part.back());
    }
    source.release();  // else the files would fill memory beside what was read of them
  }
  if (model.config.tied_embeddings) model.head = model.embedding;
  needs_backward_.resize(parts_.size());
  done_.resize(parts_.size(), true);
  model.observer = this;
}

Parameters::~Parameters() {
  model_.observer = nullptr;
}

int64_t Parameters::count() const {
  int64_t total = 0;
  for (const FlatGroup* group : trained_) total += group->elements();
  return total;
}

void Parameters::begin_step() {
  for (FlatGroup* group : trained_) group->clear_gradients();
}

void Parameters::begin_micro_batch(bool last) {
  last_ = last;
  done_.assign(parts_.size(), false);
}

void Parameters::end_micro_batch() {
  // Parts that backward did not announce: the embedding, and whatever lies below the lowest trained part.
  for (int64_t part = last_part(); part >= 0; --part) end_backward(part);
  advance_reduction(nullptr);
  replicating_.wait();
}

// The head of a tied model reads the embedding.
Parameters::Groups Parameters::needed_by(int64_t part) const {
  Groups needed = parts_[part];
  if (part == last_part() && model_.config.tied_embeddings)
    needed.insert(needed.end(), parts_[0].begin(), parts_[0].end());
  return needed;
}

void Parameters::start_gather(int64_t part) {
  for (FlatGroup* group : needed_by(part)) group->start_gather();
}

void Parameters::gather(int64_t part) {
  start_gather(part);
  for (FlatGroup* group : needed_by(part)) group->finish_gather();
}

void Parameters::release(int64_t part) {
  for (FlatGroup* group : needed_by(part)) group->release();
}

void Parameters::enter(int64_t part) {
  gather(part);
  if (part < last_part()) start_gather(part + 1);
}

void Parameters::leave(int64_t part, const at::Tensor& stream, const at::Tensor& inner) {
  needs_backward_[part] = stream.requires_grad();
  if (stream.requires_grad())
    stream.register_hook([this, part](const at::TensorBase&) {
      end_backward(part + 1);
      begin_backward(part);
    });
  if (inner.defined() && inner.requires_grad())
    inner.register_hook([this, part](const at::TensorBase&) { begin_backward(part); });
  release(part);
}

void Parameters::begin_backward(int64_t part) {
  if (part == 0) return;  // the gradient of an embedding does not need its values
  gather(part);
  if (part > 1 && needs_backward_[part - 1]) start_gather(part - 1);
}

void Parameters::end_backward(int64_t part) {
  if (done_[part]) return;
  done_[part] = true;
  release(part);
  advance_reduction(nullptr);  // before this part's sums take their memory
  for (FlatGroup* group : needed_by(part)) group->collect();
  if (!last_ && !reduces_each_) return;
  for (FlatGroup* group : parts_[part])
    if (group->role() == Role::trained) advance_reduction(group);
}

// The sum over slices of the next group starts when that of the one before is done, and the latter's sum over replicas
// runs beside it.
void Parameters::advance_reduction(FlatGroup* next) {
  if (reducing_) {
    reducing_->finish_reduce();
    replicating_.wait();
    if (last_) replicating_ = reducing_->reduce_replicas();
  }
  reducing_ = next;
  if (!next) return;
  next->start_reduce();
  if (one_slice_) advance_reduction(nullptr);  // there is only the sum over replicas, and it need not wait
}

double Parameters::gradient_norm(ProcessGroup& group) const {
  double squares = 0;
  for (const Segment& segment : segments(Role::trained)) {
    if (segment.kept == 0) continue;
    const at::Tensor kept = segment.gradient.narrow(0, segment.kept_begin, segment.kept);
    squares += std::pow(at::linalg_vector_norm(kept).item<double>(), 2);
  }
  double total = 0;
  for (const double part : group.all_gather(squares)) total += part;
  return std::sqrt(total);
}

void Parameters::scale_gradients(double factor) {
  for (Segment& segment : segments(Role::trained)) segment.gradient.mul_(factor);
}

void Parameters::update(const std::function<void(const std::vector<Segment>&)>& update) {
  for (FlatGroup* group : trained_) group->start_fetch();
  Pending before;
  for (FlatGroup* group : trained_) {
    update(group->finish_fetch());
    Pending next = group->publish();
    before.wait();
    before = std::move(next);
  }
  before.wait();
}

std::vector<Segment> Parameters::segments(Role role) const {
  std::vector<Segment> all;
  for (const auto& group : groups_) {
    if (group->role() != role) continue;
    for (Segment& segment : group->segments()) all.push_back(std::move(segment));
  }
  return all;
}

std::unique_ptr<Parameters> frozen_parameters(Decoder& model, const TensorSource& source, const Sharding& sharding,
                                              at::ScalarType dtype, at::Device device) {
  const auto frozen = [](const std::string&) { return Role::frozen; };
  return std::make_unique<Parameters>(model, source, frozen, sharding, dtype, device);
}

TensorPart kept_part(const Segment& segment, const std::string& name, const at::Tensor& values) {
  return {.name = name,
          .shape = segment.shape,
          .begin = segment.begin + segment.kept_begin,
          .values = values.narrow(0, segment.kept_begin, segment.kept)};
}

}  // namespace uniattn
