#include "train/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "support/error.h"
#include "train/stochastic_rounding.h"

namespace uniattn {
namespace {

constexpr int64_t kPiece = int64_t{1} << 20;          // elements
constexpr uint64_t kStreamStep = 0x9E3779B97F4A7C15;  // odd: streams of different steps differ
const std::string kFirst = "exp_avg.", kSecond = "exp_avg_sq.", kSteps = "step";

// Segments that share a weight decay, as the fused kernel takes them.
struct Members {
  std::vector<at::Tensor> masters, gradients, first, second;
};

void update_fused(const Members& m, const at::Tensor& steps, double learning_rate, double decay,
                  const OptimizerConfig& config) {
  at::_fused_adamw_(m.masters, m.gradients, m.first, m.second, /*max_exp_avg_sqs=*/{},
                    std::vector<at::Tensor>(m.masters.size(), steps), learning_rate, config.beta1, config.beta2, decay,
                    config.eps, /*amsgrad=*/false, /*maximize=*/false);
}

// FNV-1a, 64 bits: the same in every build.
uint64_t name_hash(const std::string& name) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return hash;
}

}  // namespace

AdamW::AdamW(const Parameters& parameters, const OptimizerConfig& config)
    : config_(config),
      dtype_(config.moments == "bfloat16" ? at::kBFloat16 : at::kFloat),
      steps_(at::zeros({}, at::kFloat)) {
  for (const Segment& segment : parameters.segments(Role::trained)) {
    const auto zeros = [&] { return at::zeros_like(segment.master, at::dtype(dtype_)); };
    moments_[segment.name] = {zeros(), zeros()};
    steps_ = steps_.to(segment.master.device());
  }
}

double AdamW::decay_of(const Segment& segment) const {
  return segment.shape.size() > 1 ? config_.weight_decay : 0.0;
}

void AdamW::step(Parameters& parameters, double learning_rate) {
  steps_.add_(1);
  parameters.update([&](const std::vector<Segment>& segments) { update(segments, learning_rate); });
}

void AdamW::update(const std::vector<Segment>& segments, double learning_rate) {
  std::map<double, Members> by_decay;
  for (const Segment& segment : segments) {
    const Moments& moments = moments_.at(segment.name);
    if (dtype_ == at::kBFloat16) {
      update_in_bfloat16(segment, moments, learning_rate);
      continue;
    }
    Members& members = by_decay[decay_of(segment)];
    members.masters.push_back(segment.master);
    members.gradients.push_back(segment.gradient);
    members.first.push_back(moments.first);
    members.second.push_back(moments.second);
  }
  for (const auto& [decay, members] : by_decay) update_fused(members, steps_, learning_rate, decay, config_);
}

// Piece by piece: what exists in float32 besides stays small.
void AdamW::update_in_bfloat16(const Segment& segment, const Moments& moments, double learning_rate) {
  const auto step = static_cast<uint64_t>(steps_.item<float>());
  for (int64_t begin = 0; begin < segment.master.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, segment.master.numel() - begin);
    const auto piece = [&](const at::Tensor& tensor) { return tensor.narrow(0, begin, count); };
    const at::Tensor first = piece(moments.first).to(at::kFloat), second = piece(moments.second).to(at::kFloat);
    update_fused({{piece(segment.master)}, {piece(segment.gradient)}, {first}, {second}}, steps_, learning_rate,
                 decay_of(segment), config_);
    const auto stream = [&](const std::string& moment) {
      return name_hash(moment + segment.name) + step * kStreamStep;
    };
    piece(moments.first).copy_(round_stochastically(first, stream(kFirst), segment.begin + begin));
    piece(moments.second).copy_(round_stochastically(second, stream(kSecond), segment.begin + begin));
  }
}

TensorParts AdamW::state(const Parameters& parameters, bool first_rank) const {
  TensorParts state;
  for (const Segment& segment : parameters.segments(Role::trained)) {
    if (segment.kept == 0) continue;
    const Moments& moments = moments_.at(segment.name);
    state.push_back(kept_part(segment, kFirst + segment.name, moments.first));
    state.push_back(kept_part(segment, kSecond + segment.name, moments.second));
  }
  if (first_rank) state.push_back({.name = kSteps, .shape = {}, .begin = 0, .values = steps_.view({1})});
  return state;
}

void AdamW::load(const Parameters& parameters, const TensorSource& moments) {
  for (const Segment& segment : parameters.segments(Role::trained)) {
    const auto& [first, second] = moments_.at(segment.name);
    const int64_t end = segment.begin + segment.master.numel();
    for (const auto& [prefix, moment] : {std::pair(kFirst, first), std::pair(kSecond, second)}) {
      if (moments.info(prefix + segment.name).shape != segment.shape)
        fail("the snapshot's moment tensor `{}` has another shape", prefix + segment.name);
      moment.copy_(moments.slice(prefix + segment.name, segment.begin, end));
    }
    moments.release();
  }
  steps_.copy_(moments.tensor(kSteps));
}

}  // namespace uniattn
