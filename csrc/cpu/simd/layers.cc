// RMSNorm, rotary embedding and gated activation, computed in float32.
#include "cpu/kernels.h"
#include "cpu/simd/tables.h"
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

// Calls f with a null pointer of the element type.
template <class F>
void with_type(Type type, F f) {
  type == Type::kFloat32 ? f(static_cast<float*>(nullptr)) : f(static_cast<BFloat16*>(nullptr));
}

template <class T>
Vec norm_scale(const RmsNormArgs& args, int64_t c) {
  const Vec weight = load(static_cast<const T*>(args.weight) + c, args.width - c);
  return args.unit_offset ? weight + 1.f : weight;
}

template <class T>
void rms_norm_forward_of(const RmsNormArgs& args, double eps, T* y, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(args.x) + r * width;
    Vec squares = {};
    for (int64_t c = 0; c < width; c += kLanes) {
      const Vec value = load(x + c, width - c);
      squares += value * value;
    }
    const float rstd = 1 / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + static_cast<float>(eps));
    args.rstd[r] = rstd;
    for (int64_t c = 0; c < width; c += kLanes) {
      store(y + r * width + c, load(x + c, width - c) * rstd * norm_scale<T>(args, c), width - c);
    }
  }
}

void rms_norm_forward(const RmsNormArgs& args, double eps, void* y, int64_t begin, int64_t end) {
  with_type(args.type, [&](auto* type) { rms_norm_forward_of(args, eps, static_cast<decltype(type)>(y), begin, end); });
}

template <class T>
void rms_norm_backward_of(const RmsNormArgs& args, const T* grad, T* dx, float* dweight, int64_t begin, int64_t end) {
  const int64_t width = args.width;
  for (int64_t r = begin; r < end; ++r) {
    const T *x = static_cast<const T*>(args.x) + r * width, *g = grad + r * width;
    const float rstd = args.rstd[r];
    Vec products = {};
    for (int64_t c = 0; c < width; c += kLanes) {
      const Vec normed = load(x + c, width - c) * rstd, upstream = load(g + c, width - c);
      products += upstream * norm_scale<T>(args, c) * normed;
      store(dweight + c, load(dweight + c, width - c) + upstream * normed, width - c);
    }
    const float mean = sum(products) / static_cast<float>(width);
    for (int64_t c = 0; c < width; c += kLanes) {
      const Vec normed = load(x + c, width - c) * rstd;
      const Vec scaled = load(g + c, width - c) * norm_scale<T>(args, c);
      store(dx + r * width + c, (scaled - normed * mean) * rstd, width - c);
    }
  }
}

void rms_norm_backward(const RmsNormArgs& args, const void* grad, void* dx, float* dweight, int64_t begin,
                       int64_t end) {
  with_type(args.type, [&](auto* type) {
    using Pointer = decltype(type);
    rms_norm_backward_of(args, static_cast<Pointer>(const_cast<void*>(grad)), static_cast<Pointer>(dx), dweight, begin,
                         end);
  });
}

template <class T>
void rotary_of(const RotaryArgs& args, T* out, int64_t begin, int64_t end) {
  const int64_t half = args.head_dim / 2;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < args.heads; ++h) {
      const T* x = static_cast<const T*>(args.x) + t * args.token_stride + h * args.head_stride;
      T* y = out + (t * args.heads + h) * args.head_dim;
      for (int64_t c = 0; c < half; c += kLanes) {
        const int64_t n = half - c;
        const Vec a = load(x + c, n), b = load(x + half + c, n);
        const Vec cos = load(args.cos + t * half + c, n), sin = load(args.sin + t * half + c, n);
        store(y + c, a * cos - b * sin, n);
        store(y + half + c, b * cos + a * sin, n);
      }
    }
  }
}

void rotary(const RotaryArgs& args, int64_t begin, int64_t end) {
  with_type(args.type, [&](auto* type) { rotary_of(args, static_cast<decltype(type)>(args.out), begin, end); });
}

// An activation and its derivative at x.
struct Activated {
  Vec value, slope;
};

Activated silu(Vec x) {
  const Vec s = sigmoid(x);
  return {x * s, s * (1.f + x * (1.f - s))};
}

Activated gelu_tanh(Vec x) {
  const float root = 0.7978845608f, cubic = 0.044715f;  // sqrt(2 / pi)
  const Vec t = tanh(root * (x + cubic * x * x * x));
  const Vec slope = 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * root * (1.f + 3 * cubic * x * x);
  return {0.5f * x * (1.f + t), slope};
}

Activated activate(Activation activation, Vec x) {
  return activation == Activation::kSilu ? silu(x) : gelu_tanh(x);
}

void gated_activation(const void* gate, const void* up, Activation activation, Type type, void* out, int64_t begin,
                      int64_t end) {
  with_type(type, [&](auto* tag) {
    using Pointer = decltype(tag);
    const auto g = static_cast<Pointer>(const_cast<void*>(gate)), u = static_cast<Pointer>(const_cast<void*>(up));
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec value = activate(activation, load(g + i, end - i)).value;
      store(static_cast<Pointer>(out) + i, value * load(u + i, end - i), end - i);
    }
  });
}

void gated_activation_backward(const void* grad, const void* gate, const void* up, Activation activation, Type type,
                               void* dgate, void* dup, int64_t begin, int64_t end) {
  with_type(type, [&](auto* tag) {
    using Pointer = decltype(tag);
    const auto d = static_cast<Pointer>(const_cast<void*>(grad)), g = static_cast<Pointer>(const_cast<void*>(gate)),
               u = static_cast<Pointer>(const_cast<void*>(up));
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec upstream = load(d + i, end - i);
      const Activated act = activate(activation, load(g + i, end - i));
      store(static_cast<Pointer>(dgate) + i, upstream * load(u + i, end - i) * act.slope, end - i);
      store(static_cast<Pointer>(dup) + i, upstream * act.value, end - i);
    }
  });
}

}  // namespace

void fill_layers(Kernels& table) {
  table.rms_norm_forward = rms_norm_forward;
  table.rms_norm_backward = rms_norm_backward;
  table.rotary = rotary;
  table.gated_activation = gated_activation;
  table.gated_activation_backward = gated_activation_backward;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
