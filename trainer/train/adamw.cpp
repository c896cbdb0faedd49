#include "train/adamw.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

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

void update(const Members& m, const at::Tensor& steps, double learning_rate, double decay,
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
    : config_(config), dtype_(config.moments == "bfloat16" ? at::kBFloat16 : at::kFloat) {
  for (const Segment& segment : parameters.segments(Role::trained)) {
    first_.push_back(at::zeros_like(segment.master, at::dtype(dtype_)));
    second_.push_back(at::zeros_like(segment.master, at::dtype(dtype_)));
    steps_ = at::zeros({}, segment.master.options());
  }
}

double AdamW::decay_of(const Segment& segment) const {
  return segment.shape.size() > 1 ? config_.weight_decay : 0.0;
}

void AdamW::step(const Parameters& parameters, double learning_rate) {
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  if (segments.empty()) return;  // more ranks than there is to share
  steps_.add_(1);
  std::map<double, Members> by_decay;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (dtype_ == at::kBFloat16) {
      step_in_bfloat16(segments[i], first_[i], second_[i], learning_rate);
      continue;
    }
    Members& members = by_decay[decay_of(segments[i])];
    members.masters.push_back(segments[i].master);
    members.gradients.push_back(segments[i].gradient);
    members.first.push_back(first_[i]);
    members.second.push_back(second_[i]);
  }
  for (const auto& [decay, members] : by_decay) update(members, steps_, learning_rate, decay, config_);
}

// Piece by piece: what exists in float32 besides stays small.
void AdamW::step_in_bfloat16(const Segment& segment, at::Tensor& first, at::Tensor& second, double learning_rate) {
  const auto step = static_cast<uint64_t>(steps_.item<float>());
  for (int64_t begin = 0; begin < first.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, first.numel() - begin);
    const auto piece = [&](const at::Tensor& tensor) { return tensor.narrow(0, begin, count); };
    const at::Tensor first_piece = piece(first).to(at::kFloat), second_piece = piece(second).to(at::kFloat);
    update({{piece(segment.master)}, {piece(segment.gradient)}, {first_piece}, {second_piece}}, steps_, learning_rate,
           decay_of(segment), config_);
    const auto stream = [&](const std::string& moment) {
      return name_hash(moment + segment.name) + step * kStreamStep;
    };
    piece(first).copy_(round_stochastically(first_piece, stream(kFirst), segment.begin + begin));
    piece(second).copy_(round_stochastically(second_piece, stream(kSecond), segment.begin + begin));
  }
}

TensorParts AdamW::state(const Parameters& parameters, bool first_rank) const {
  TensorParts state;
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].kept == 0) continue;
    state.push_back(kept_part(segments[i], kFirst + segments[i].name, first_[i]));
    state.push_back(kept_part(segments[i], kSecond + segments[i].name, second_[i]));
  }
  if (first_rank) state.push_back({.name = kSteps, .shape = {}, .begin = 0, .values = steps_.view({1})});
  return state;
}

void AdamW::load(const Parameters& parameters, const TensorSource& moments) {
  const std::vector<Segment> segments = parameters.segments(Role::trained);
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const int64_t end = segment.begin + segment.master.numel();
    for (const auto& [prefix, moment] : {std::pair(kFirst, first_[i]), std::pair(kSecond, second_[i])}) {
      if (moments.info(prefix + segment.name).shape != segment.shape)
        fail("the snapshot's moment tensor `{}` has another shape", prefix + segment.name);
      moment.copy_(moments.slice(prefix + segment.name, segment.begin, end));
    }
  }
  if (!segments.empty()) steps_.copy_(moments.tensor(kSteps));
}

}  // namespace uniattn
