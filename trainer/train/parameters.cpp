#include "train/parameters.h"

#include <cmath>

namespace uniattn {

TrainedParameters::TrainedParameters(Decoder& model, const TrainedSet& set, Masters& masters) {
  std::vector<std::string> all;
  for (auto& [name, parameter] : model.parameters()) all.push_back(name);
  check_trained_set(set, all);
  for (auto& [name, parameter] : model.parameters()) {
    parameter->set_requires_grad(false);
    if (!is_trained(set, name)) continue;
    at::Tensor& master = masters[name];
    if (parameter->scalar_type() == at::kFloat) master = *parameter;  // one tensor serves as both
    if (!master.defined()) master = parameter->to(at::kFloat);
    parameter->set_requires_grad(true);
    names_.push_back(name);
    leaves_.push_back(*parameter);
    masters_.push_back(master.detach());
    gradients_.push_back(at::zeros_like(masters_.back()));
  }
}

int64_t TrainedParameters::count() const {
  int64_t total = 0;
  for (const at::Tensor& master : masters_) total += master.numel();
  return total;
}

void TrainedParameters::accumulate() {
  for (size_t i = 0; i < leaves_.size(); ++i) {
    at::Tensor& gradient = leaves_[i].mutable_grad();
    if (!gradient.defined()) continue;
    gradients_[i].add_(gradient);
    gradient.reset();
  }
}

void TrainedParameters::all_reduce(ProcessGroup& group) {
  group.all_reduce_sum(gradients_);
}

double TrainedParameters::gradient_norm() const {
  double squares = 0;
  for (const at::Tensor& gradient : gradients_) squares += std::pow(at::linalg_vector_norm(gradient).item<double>(), 2);
  return std::sqrt(squares);
}

void TrainedParameters::scale_gradients(double factor) {
  for (at::Tensor& gradient : gradients_) gradient.mul_(factor);
}

void TrainedParameters::clear() {
  for (at::Tensor& gradient : gradients_) gradient.zero_();
}

void TrainedParameters::publish() {
  for (size_t i = 0; i < leaves_.size(); ++i)
    if (leaves_[i].scalar_type() != at::kFloat) leaves_[i].detach().copy_(masters_[i]);
}

}  // namespace uniattn
