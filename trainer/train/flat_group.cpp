#include "train/flat_group.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace uniattn {
namespace {

constexpr int64_t kAlignment = 64;                  // elements
constexpr int64_t kAddedAtOnce = int64_t{1} << 22;  // elements: on CPUs a sum converts what it adds to a copy first

int64_t rounded_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

int64_t flat_size(const std::vector<int64_t>& elements, int64_t world_size) {
  int64_t size = 0;
  for (const int64_t n : elements) size += rounded_up(n, kAlignment);
  return rounded_up(size, kAlignment * world_size);
}

FlatGroup::FlatGroup(const std::vector<ParameterSlot>& slots, Role role, const Sharding& sharding,
                     const TensorSource& source, at::ScalarType dtype, at::Device device)
    : role_(role), sharding_(sharding) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> sizes;
  int64_t begin = 0;
  for (const ParameterSlot& slot : slots) {
    sizes.push_back(c10::multiply_integers(slot.shape));
    entries_.push_back({slot.name, slot.shape, begin, begin + sizes.back(), {}});
    begin = rounded_up(begin + sizes.back(), kAlignment);
    elements_ += sizes.back();
  }
  padded_ = flat_size(sizes, sharding.world_size);
  slice_size_ = padded_ / sharding.slices.size();
  slice_begin_ = sharding.slices.rank() * slice_size_;

  flat_ = at::zeros({padded_}, at::dtype(dtype).device(device));
  for (size_t i = 0; i < slots.size(); ++i) {
    Entry& entry = entries_[i];
    // Not a view to autograd: gathering writes into the buffer while graphs hold the parameter.
    entry.parameter = flat_.narrow(0, entry.begin, entry.end - entry.begin).view(entry.shape).variable_data();
    entry.parameter.set_requires_grad(role == Role::trained);
    *slots[i].parameter = entry.parameter;
  }
  if (shards_parameters()) release();
  own_ = shards_parameters() ? at::zeros({slice_size_}, flat_.options()) : slice_of(flat_);
  if (role != Role::frozen) make_masters();
  for (size_t i = 0; i < slots.size(); ++i) load(source, entries_[i], slots[i]);
}

void FlatGroup::make_masters() {
  if (!sharding_.offload) {
    master_ = flat_.scalar_type() == at::kFloat ? own_ : at::zeros_like(own_, at::dtype(at::kFloat));
    return;
  }
  const auto on_host = at::dtype(at::kFloat).device(at::kCPU);
  master_ = at::zeros({slice_size_}, on_host);
  // A GPU copies beside its computation only from and to pinned memory.
  if (role_ == Role::trained) exchange_ = at::empty({slice_size_}, on_host.pinned_memory(flat_.is_cuda()));
}

void FlatGroup::load(const TensorSource& source, const Entry& entry, const TensorSpec& spec) {
  const int64_t slice_end = slice_begin_ + slice_size_;
  const int64_t begin = shards_parameters() ? std::clamp(slice_begin_, entry.begin, entry.end) : entry.begin;
  const int64_t end = shards_parameters() ? std::clamp(slice_end, entry.begin, entry.end) : entry.end;
  if (begin == end) return;
  const at::Tensor values = read_slice(source, spec, begin - entry.begin, end - entry.begin);
  if (shards_parameters())
    own_.narrow(0, begin - slice_begin_, end - begin).copy_(values);
  else
    flat_.narrow(0, begin, end - begin).copy_(values);
  if (!master_.defined() || master_.is_same(own_)) return;
  const int64_t from = std::clamp(slice_begin_, begin, end), to = std::clamp(slice_end, begin, end);
  if (from < to) master_.narrow(0, from - slice_begin_, to - from).copy_(values.slice(0, from - begin, to - begin));
}

void FlatGroup::start_gather() {
  if (present_ || gathering_) return;
  const c10::Storage& storage = flat_.storage();
  const size_t bytes = static_cast<size_t>(padded_) * flat_.element_size();
  storage.set_data_ptr_noswap(storage.allocator()->allocate(bytes));
  storage.set_nbytes(bytes);
  gather_ = sharding_.slices.all_gather(flat_, own_);
  gathering_ = true;
}

void FlatGroup::finish_gather() {
  if (!gathering_) return;
  gather_.wait();
  gathering_ = false;
  present_ = true;
}

void FlatGroup::release() {
  if (!shards_parameters()) return;
  finish_gather();  // of a gather that turned out not to be needed
  const c10::Storage& storage = flat_.storage();
  storage.set_data_ptr_noswap({nullptr, flat_.device()});
  storage.set_nbytes(0);
  present_ = false;
}

void FlatGroup::collect() {
  if (role_ != Role::trained) return;
  const at::NoGradGuard no_grad;
  for (Entry& entry : entries_) {
    at::Tensor& gradient = entry.parameter.mutable_grad();
    if (!gradient.defined()) continue;
    if (!sums_.defined()) sums_ = at::zeros({padded_}, flat_.options().dtype(at::kFloat));
    int64_t begin = entry.begin;
    for (const at::Tensor& piece : gradient.flatten().split(kAddedAtOnce)) {
      sums_.narrow(0, begin, piece.numel()).add_(piece);
      begin += piece.numel();
    }
    gradient.reset();
  }
}

void FlatGroup::start_reduce() {
  if (!sums_.defined()) sums_ = at::zeros({padded_}, flat_.options().dtype(at::kFloat));
  reduced_ = keeps_sums() ? slice_of(sums_) : at::empty({slice_size_}, sums_.options());
  reduce_ = sharding_.slices.reduce_scatter_sum(reduced_, sums_);
}

void FlatGroup::finish_reduce() {
  reduce_.wait();
  if (!keeps_sums()) sums_.reset();
  gradient_ = gradient_.defined() && !keeps_sums() ? gradient_.add_(reduced_) : reduced_;
  reduced_.reset();
}

Pending FlatGroup::reduce_replicas() {
  return sharding_.replicas.all_reduce_sum(gradient_);
}

void FlatGroup::clear_gradients() {
  if (keeps_sums() && sums_.defined()) sums_.zero_();
  gradient_.reset();
}

void FlatGroup::start_fetch() {
  if (!sharding_.offload) return;
  exchange_.copy_(gradient_, /*non_blocking=*/true);
  if (!gradient_.is_cuda()) return;
  fetched_.emplace(at::kCUDA);
  fetched_->record(at::accelerator::getCurrentStream(gradient_.device().index()));
}

std::vector<Segment> FlatGroup::finish_fetch() {
  if (fetched_) fetched_->synchronize();
  return segments_with(sharding_.offload ? exchange_ : gradient_);
}

Pending FlatGroup::publish() {
  const at::NoGradGuard no_grad;
  if (sharding_.offload) {
    const at::Tensor rounded = exchange_.view(own_.scalar_type()).narrow(0, 0, slice_size_);  // over used gradients
    rounded.copy_(master_);
    own_.copy_(rounded, /*non_blocking=*/true);
  } else if (!master_.is_same(own_)) {
    own_.copy_(master_);
  }
  if (shards_parameters()) return {};
  return sharding_.slices.all_gather(flat_, own_);
}

std::vector<Segment> FlatGroup::segments_with(const at::Tensor& gradient) const {
  const int64_t piece = padded_ / sharding_.world_size;
  const int64_t kept_begin = sharding_.kept_piece() * piece, kept_end = kept_begin + piece;
  std::vector<Segment> segments;
  for (const Entry& entry : entries_) {
    const int64_t begin = std::clamp(slice_begin_, entry.begin, entry.end);
    const int64_t end = std::clamp(slice_begin_ + slice_size_, entry.begin, entry.end);
    if (begin == end) continue;
    const int64_t offset = begin - slice_begin_;
    const int64_t from = std::clamp(kept_begin, begin, end), to = std::clamp(kept_end, begin, end);
    segments.push_back({.name = entry.name,
                        .shape = entry.shape,
                        .begin = begin - entry.begin,
                        .master = master_.narrow(0, offset, end - begin),
                        .gradient = gradient.defined() ? gradient.narrow(0, offset, end - begin) : at::Tensor(),
                        .kept_begin = from - begin,
                        .kept = to - from});
  }
  return segments;
}

}  // namespace uniattn
