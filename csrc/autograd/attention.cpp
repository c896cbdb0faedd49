// Autograd of a superblock. A leader's node needs (dO_i, V_i, delta_i, head map) of every follower to build dQ and dK
// in one pass. It gets them as the gradients of three zero-stride "handles" that it returns per follower and that the
// follower takes as inputs: the engine itself carries them, and runs the leader's node after all of its followers'.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd/once_differentiable.h"
#include "checks.h"
#include "probs_tiles.h"
#include "raw.h"

namespace uniattn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kHandlesPerFollower = 3;

// The delta handle holds, per query head of the follower, its delta over all tokens and two more columns. Gradients of
// a tensor that is used twice are summed, so the use count tells a handle that served two followers.
constexpr int64_t kUseCountColumn = 0, kLeaderHeadColumn = 1, kDeltaColumn = 2;

Tensor zero_stride(c10::SymIntArrayRef sizes, const at::TensorOptions& options) {
  return at::zeros({1}, options).expand_symint(sizes);
}

std::vector<Tensor> make_handles(const Tensor& q, const Tensor& k, int64_t followers) {
  const auto statistic = q.options().dtype(accumulation_type(q.scalar_type()));
  std::vector<Tensor> handles;
  for (int64_t i = 0; i < followers; ++i) {
    handles.push_back(zero_stride(q.sym_sizes(), q.options()));
    handles.push_back(zero_stride(k.sym_sizes(), q.options()));
    handles.push_back(zero_stride({q.sym_size(1), q.sym_size(0) + kDeltaColumn}, statistic));
  }
  return handles;
}

Tensor pack_delta(const Tensor& delta, const OptionalTensor& head_map) {
  const Tensor heads = head_map ? *head_map : at::arange(delta.size(0), delta.options().dtype(at::kLong));
  return at::cat(
      {at::ones_symint({delta.sym_size(0), 1}, delta.options()), heads.to(delta.scalar_type()).unsqueeze(1), delta}, 1);
}

struct UnpackedDelta {
  Tensor delta, head_map;
};

UnpackedDelta unpack_delta(const Tensor& packed) {
  at::_assert_async(
      packed.select(1, kUseCountColumn).eq(1).all(),
      "uniattn::attend: one handle served more than one attend(); ask attention() for as many followers as "
      "there are, and give each its own handle");
  return {packed.narrow_symint(1, kDeltaColumn, packed.sym_size(1) - kDeltaColumn),
          packed.select(1, kLeaderHeadColumn).to(at::kLong)};
}

void save_options(AutogradContext* ctx, const AttentionOptions& options) {
  ctx->saved_data["causal"] = options.causal;
  ctx->saved_data["window"] = options.window;
  ctx->saved_data["softcap"] = options.softcap;
  ctx->saved_data["scale"] = options.scale;
}

AttentionOptions saved_options(AutogradContext* ctx) {
  auto& data = ctx->saved_data;
  return {data["causal"].toBool(), data["window"].toInt(), data["softcap"].toDouble(),
          data["scale"].toOptional<double>()};
}

using AttentionOutputs = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

struct Reuse {
  int64_t followers;
  std::optional<bool> keep_probs;
  int64_t probs_budget;
};

bool keeps_probs(const Tensor& q, const AttentionOptions& options, const Reuse& reuse) {
  const bool possible = q.device().is_cpu();
  TORCH_CHECK_VALUE(possible || !reuse.keep_probs.value_or(false), "keep_probs is True and q is on ", q.device(),
                    ", but P can be kept on a CPU only: leave it to \"auto\", which rebuilds P there");
  if (reuse.keep_probs) return *reuse.keep_probs;
  return possible && reuse.followers > 0 && q.dim() == 3 && tiles_bytes(q, options) <= reuse.probs_budget;
}

AttentionOutputs attention_outputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                                   const AttentionOptions& options, const Reuse& reuse) {
  TORCH_CHECK_VALUE(reuse.followers >= 0, "followers must be 0 or more, got ", reuse.followers);
  TORCH_CHECK_VALUE(reuse.probs_budget >= 0, "probs_budget must be a number of bytes, got ", reuse.probs_budget);
  auto [out, lse, tiles] = raw::attention_forward(q, k, v, cu_seqlens, options, keeps_probs(q, options, reuse));
  return {out, lse, tiles, make_handles(q, k, reuse.followers)};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static constexpr size_t kFirstHandle = 3;

  // Returns out, lse, tiles and the handles.
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& cu_seqlens, const AttentionOptions& options, const Reuse& reuse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, lse, tiles, handles] = attention_outputs(q, k, v, cu_seqlens, options, reuse);
    ctx->save_for_backward({q, k, v, cu_seqlens, out, lse, tiles});
    ctx->mark_non_differentiable({lse, tiles});
    ctx->set_materialize_grads(false);
    save_options(ctx, options);
    variable_list outputs{out, lse, tiles};
    outputs.insert(outputs.end(), handles.begin(), handles.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &cu_seqlens = saved[3], &out = saved[4], &lse = saved[5],
                 &tiles = saved[6];
    variable_list result(6);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      const Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
      std::vector<Tensor> grad_outs{grad_out}, values{v}, deltas{raw::attention_delta(grad_out, out)};
      c10::List<OptionalTensor> head_maps;
      head_maps.push_back(std::nullopt);
      for (size_t i = kFirstHandle; i < grads.size(); i += kHandlesPerFollower) {
        if (!grads[i + 2].defined()) continue;  // No attend() used this handle.
        auto [delta, head_map] = unpack_delta(grads[i + 2]);
        grad_outs.push_back(grads[i]);
        values.push_back(grads[i + 1]);
        deltas.push_back(delta);
        head_maps.push_back(head_map);
      }
      std::tie(result[0], result[1], result[2]) = raw::superblock_backward(
          q, k, lse, tiles, cu_seqlens, grad_outs, values, deltas, head_maps, saved_options(ctx));
    }
    return once_differentiable("attention", std::move(result));
  }
};

class Attend : public torch::autograd::Function<Attend> {
 public:
  static constexpr size_t kValueInput = 4, kHandleInput = 6;

  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                        const Tensor& v, const Tensor& cu_seqlens, const Tensor&, const Tensor&, const Tensor&,
                        const OptionalTensor& head_map, const AttentionOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor out = raw::attend_forward(q, k, lse, tiles, v, cu_seqlens, head_map, options);
    ctx->save_for_backward({q, k, lse, tiles, v, cu_seqlens, out, head_map.value_or(Tensor())});
    save_options(ctx, options);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &lse = saved[2], &tiles = saved[3], &v = saved[4],
                 &cu_seqlens = saved[5], &out = saved[6];
    const OptionalTensor head_map = saved[7].defined() ? OptionalTensor(saved[7]) : std::nullopt;
    const Tensor& grad_out = grads[0];
    variable_list result(11);
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      if (ctx->needs_input_grad(kValueInput)) {
        result[kValueInput] =
            raw::attend_backward_value(q, k, lse, tiles, grad_out, cu_seqlens, head_map, saved_options(ctx));
      }
      if (ctx->needs_input_grad(kHandleInput)) {
        result[kHandleInput] = grad_out;
        result[kHandleInput + 1] = v;
        result[kHandleInput + 2] = pack_delta(raw::attention_delta(grad_out, out), head_map);
      }
    }
    return once_differentiable("attend", std::move(result));
  }
};

AttentionOutputs attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                                    int64_t followers, bool causal, int64_t window, double softcap,
                                    std::optional<double> scale, std::optional<bool> keep_probs, int64_t probs_budget) {
  const variable_list outputs = Attention::apply(q, k, v, cu_seqlens, AttentionOptions{causal, window, softcap, scale},
                                                 Reuse{followers, keep_probs, probs_budget});
  return {outputs[0], outputs[1], outputs[2], {outputs.begin() + Attention::kFirstHandle, outputs.end()}};
}

AttentionOutputs attention_below_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                                          int64_t followers, bool causal, int64_t window, double softcap,
                                          std::optional<double> scale, std::optional<bool> keep_probs,
                                          int64_t probs_budget) {
  return attention_outputs(q, k, v, cu_seqlens, {causal, window, softcap, scale},
                           {followers, keep_probs, probs_budget});
}

Tensor attend_autograd(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                       const Tensor& cu_seqlens, const Tensor& handle_out, const Tensor& handle_value,
                       const Tensor& handle_delta, const OptionalTensor& head_map, bool causal, int64_t window,
                       double softcap, std::optional<double> scale) {
  return Attend::apply(q, k, lse, tiles, v, cu_seqlens, handle_out, handle_value, handle_delta, head_map,
                       AttentionOptions{causal, window, softcap, scale});
}

Tensor attend_below_autograd(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                             const Tensor& cu_seqlens, const Tensor&, const Tensor&, const Tensor&,
                             const OptionalTensor& head_map, bool causal, int64_t window, double softcap,
                             std::optional<double> scale) {
  return raw::attend_forward(q, k, lse, tiles, v, cu_seqlens, head_map, {causal, window, softcap, scale});
}

}  // namespace

TORCH_LIBRARY_IMPL(uniattn, Autograd, m) {
  m.impl("attention", attention_autograd);
  m.impl("attend", attend_autograd);
}

TORCH_LIBRARY_IMPL(uniattn, CompositeExplicitAutograd, m) {
  m.impl("attention", attention_below_autograd);
  m.impl("attend", attend_below_autograd);
}

}  // namespace uniattn
