// The softmax part of linear + cross-entropy, on rows of logits that were just computed and are still in cache.
#include "cpu/kernels.h"
#include "cpu/simd/tables.h"
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

// Lanes from `count` on become `value`.
Vec fill_from(Vec x, int64_t count, float value) {
  for (int64_t i = count; i < kLanes; ++i) x[i] = value;
  return x;
}

Vec soft_capped(Vec logits, float softcap) {
  return softcap == 0 ? logits : softcap * tanh(logits * (1 / softcap));
}

template <class T>
void cross_entropy_forward_of(const LogitsArgs& args, float* loss) {
  const int64_t vocabulary = args.vocabulary;
  const float lowest = -__builtin_inff();
  for (int64_t r = 0; r < args.rows; ++r) {
    T* row = static_cast<T*>(args.logits) + r * vocabulary;
    const float label = soft_capped(broadcast(load_one(row + args.labels[r])), args.softcap)[0];
    Vec top = broadcast(lowest);
    for (int64_t c = 0; c < vocabulary; c += kLanes) {
      top = max(top, fill_from(load(row + c, vocabulary - c), vocabulary - c, lowest));
    }
    // The soft-cap is monotone: the largest capped logit is the cap of the largest.
    const float maximum = soft_capped(broadcast(largest(top)), args.softcap)[0];
    Vec total = {};
    for (int64_t c = 0; c < vocabulary; c += kLanes) {
      const Vec logits = soft_capped(load(row + c, vocabulary - c), args.softcap);
      total += fill_from(exp(logits - maximum), vocabulary - c, 0);
    }
    args.lse[r] = maximum + __builtin_logf(sum(total));
    loss[r] = args.lse[r] - label;
  }
}

void cross_entropy_forward(const LogitsArgs& args, float* loss) {
  args.type == Type::kFloat32 ? cross_entropy_forward_of<float>(args, loss)
                              : cross_entropy_forward_of<BFloat16>(args, loss);
}

template <class T>
void cross_entropy_backward_of(const LogitsArgs& args, const float* grad) {
  const int64_t vocabulary = args.vocabulary;
  const float inverse = args.softcap == 0 ? 0 : 1 / args.softcap;
  for (int64_t r = 0; r < args.rows; ++r) {
    T* row = static_cast<T*>(args.logits) + r * vocabulary;
    const float capped_label = soft_capped(broadcast(load_one(row + args.labels[r])), args.softcap)[0];
    for (int64_t c = 0; c < vocabulary; c += kLanes) {
      const Vec logits = soft_capped(load(row + c, vocabulary - c), args.softcap);
      const Vec ratio = logits * inverse;
      store(row + c, exp(logits - args.lse[r]) * (1.f - ratio * ratio) * grad[r], vocabulary - c);
    }
    const float probability = exp(broadcast(capped_label - args.lse[r]))[0], ratio = capped_label * inverse;
    store_one(row + args.labels[r], (probability - 1) * (1 - ratio * ratio) * grad[r]);
  }
}

void cross_entropy_backward(const LogitsArgs& args, const float* grad) {
  args.type == Type::kFloat32 ? cross_entropy_backward_of<float>(args, grad)
                              : cross_entropy_backward_of<BFloat16>(args, grad);
}

}  // namespace

void fill_cross_entropy(Kernels& table) {
  table.cross_entropy_forward = cross_entropy_forward;
  table.cross_entropy_backward = cross_entropy_backward;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
