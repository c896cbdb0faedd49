#include "checks.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <cmath>

namespace uniattn {

using at::Tensor;

void check_on_device_of(const Tensor& x, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " is on ", x.device(), " but ", like_name, " is on ",
                    like.device(), ": move them to one device");
}

void check_same_kind(const Tensor& x, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK_VALUE(x.scalar_type() == like.scalar_type(), name, " is ", x.scalar_type(), " but ", like_name, " is ",
                    like.scalar_type(), ": convert one of them, the dtypes must agree");
  check_on_device_of(x, name, like, like_name);
}

namespace {

void check_floating(const Tensor& x, const char* name) {
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()), name, " must have a floating dtype, got ", x.scalar_type());
}

// `x` must be of `sizes`, in the accumulation dtype and on the device of `like`.
void check_statistic(const Tensor& x, const char* name, c10::SymIntArrayRef sizes, const Tensor& like,
                     const char* like_name) {
  const auto type = accumulation_type(like.scalar_type());
  TORCH_CHECK_VALUE(x.sym_sizes() == sizes && x.scalar_type() == type, name, " must be ", type, " ", sizes, " for ",
                    like_name, " ", like.sym_sizes(), " of ", like.scalar_type(), ", got ", x.scalar_type(), " ",
                    x.sym_sizes());
  check_on_device_of(x, name, like, like_name);
}

}  // namespace

void check_query_key(const Tensor& q, const Tensor& k, const Tensor& cu_seqlens, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(q.dim() == 3, "q must be [tokens, heads, head_dim], got ", q.sym_sizes());
  TORCH_CHECK_VALUE(k.dim() == 3 && k.sym_size(0) == q.sym_size(0) && k.sym_size(2) == q.sym_size(2),
                    "k must be [tokens, kv_heads, head_dim] with the tokens and head_dim of q ", q.sym_sizes(),
                    ", got ", k.sym_sizes());
  TORCH_CHECK_VALUE(q.sym_size(1) > 0 && q.sym_size(2) > 0, "q must have at least one head and head_dim > 0, got ",
                    q.sym_sizes());
  TORCH_CHECK_VALUE(k.sym_size(1) > 0 && q.sym_size(1) % k.sym_size(1) == 0, "k has ", k.sym_size(1),
                    " heads, which does not divide the ", q.sym_size(1), " heads of q");
  check_floating(q, "q");
  check_same_kind(k, "k", q, "q");
  TORCH_CHECK_VALUE(cu_seqlens.scalar_type() == at::kInt && cu_seqlens.dim() == 1 && cu_seqlens.sym_size(0) >= 1,
                    "cu_seqlens must be int32 [sequences + 1], got ", cu_seqlens.scalar_type(), " ",
                    cu_seqlens.sym_sizes());
  TORCH_CHECK_VALUE(cu_seqlens.device() == q.device(), "cu_seqlens is on ", cu_seqlens.device(), " but q is on ",
                    q.device(), ": move them to one device");
  TORCH_CHECK_VALUE(options.window >= 0, "window must be 0 (off) or the number of visible tokens, got ",
                    options.window);
  TORCH_CHECK_VALUE(options.softcap >= 0 && std::isfinite(options.softcap), "softcap must be 0 (off) or positive, got ",
                    options.softcap);
  TORCH_CHECK_VALUE(!options.scale || std::isfinite(*options.scale), "scale must be finite, got ", *options.scale);
}

void check_like(const Tensor& x, const char* name, const Tensor& like, const char* like_name) {
  TORCH_CHECK_VALUE(x.sym_sizes() == like.sym_sizes(), name, " must have the shape of ", like_name, " ",
                    like.sym_sizes(), ", got ", x.sym_sizes());
  check_same_kind(x, name, like, like_name);
}

void check_row_statistic(const Tensor& x, const char* name, const Tensor& q) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.sym_size(0) == q.sym_size(1) && x.sym_size(1) == q.sym_size(0), name,
                    " must be [heads, tokens] = [", q.sym_size(1), ", ", q.sym_size(0), "], got ", x.sym_sizes());
  const auto type = accumulation_type(q.scalar_type());
  TORCH_CHECK_VALUE(x.scalar_type() == type, name, " must be ", type, " for ", q.scalar_type(), " queries, got ",
                    x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == q.device(), name, " is on ", x.device(), " but q is on ", q.device());
}

void check_tiles(const Tensor& tiles, const Tensor& q) {
  TORCH_CHECK_VALUE(tiles.dim() == 2 && tiles.sym_size(0) == q.sym_size(1), "tiles must be [heads, elements] with the ",
                    q.sym_size(1), " heads of q, got ", tiles.sym_sizes());
  check_same_kind(tiles, "tiles", q, "q");
}

void check_head_map(const std::optional<Tensor>& head_map, const Tensor& q) {
  if (!head_map) return;
  TORCH_CHECK_VALUE(
      head_map->scalar_type() == at::kLong && head_map->dim() == 1 && head_map->sym_size(0) == q.sym_size(1),
      "head_map must be int64 [heads] = [", q.sym_size(1), "], got ", head_map->scalar_type(), " ",
      head_map->sym_sizes());
  TORCH_CHECK_VALUE(head_map->device() == q.device(), "head_map is on ", head_map->device(), " but q is on ",
                    q.device());
}

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                     const AttentionOptions& options) {
  check_query_key(q, k, cu_seqlens, options);
  check_like(v, "v", k, "k");
}

void check_attend(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles, const Tensor& v,
                  const Tensor& cu_seqlens, const std::optional<Tensor>& head_map, const AttentionOptions& options) {
  check_query_key(q, k, cu_seqlens, options);
  check_row_statistic(lse, "lse", q);
  check_tiles(tiles, q);
  check_like(v, "v", k, "k");
  check_head_map(head_map, q);
}

void check_attend_backward_value(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                                 const Tensor& grad_out, const Tensor& cu_seqlens,
                                 const std::optional<Tensor>& head_map, const AttentionOptions& options) {
  check_query_key(q, k, cu_seqlens, options);
  check_row_statistic(lse, "lse", q);
  check_tiles(tiles, q);
  check_like(grad_out, "grad_out", q, "q");
  check_head_map(head_map, q);
}

void check_superblock(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& tiles,
                      const Tensor& cu_seqlens, at::TensorList grad_out, at::TensorList v, at::TensorList delta,
                      const c10::List<std::optional<Tensor>>& head_map, const AttentionOptions& options) {
  check_query_key(q, k, cu_seqlens, options);
  check_row_statistic(lse, "lse", q);
  check_tiles(tiles, q);
  const size_t layers = grad_out.size();
  TORCH_CHECK_VALUE(layers > 0 && v.size() == layers && delta.size() == layers && head_map.size() == layers,
                    "grad_out, v, delta and head_map must have one entry per layer, got ", layers, ", ", v.size(), ", ",
                    delta.size(), " and ", head_map.size());
  TORCH_CHECK_VALUE(!head_map.get(0), "head_map[0] must be None: the first layer is the leader itself");
  for (size_t i = 0; i < layers; ++i) {
    check_like(grad_out[i], "grad_out", q, "q");
    check_like(v[i], "v", k, "k");
    check_row_statistic(delta[i], "delta", q);
    check_head_map(head_map.get(i), q);
  }
}

void check_head_map_values(const std::optional<Tensor>& head_map, int64_t heads) {
  if (!head_map) return;
  const Tensor values = head_map->cpu().contiguous();
  for (int64_t n = 0; n < values.numel(); ++n) {
    const int64_t head = values.const_data_ptr<int64_t>()[n];
    TORCH_CHECK_VALUE(head >= 0 && head < heads, "head_map[", n, "] is ", head, ", but the leader has heads 0 to ",
                      heads - 1);
  }
}

std::vector<int64_t> check_sequences(const Tensor& cu_seqlens, int64_t tokens, const char* name) {
  const Tensor values = cu_seqlens.cpu().contiguous();
  const int32_t* data = values.const_data_ptr<int32_t>();
  std::vector<int64_t> bounds(data, data + values.numel());
  TORCH_CHECK_VALUE(bounds.front() == 0, name, " must start at 0, got ", bounds.front());
  for (size_t s = 1; s < bounds.size(); ++s) {
    TORCH_CHECK_VALUE(bounds[s] >= bounds[s - 1], name, " must not fall, but ", name, "[", s, "] = ", bounds[s],
                      " follows ", bounds[s - 1]);
  }
  TORCH_CHECK_VALUE(bounds.back() == tokens, name, " must end at the number of tokens, ", tokens, ", got ",
                    bounds.back());
  return bounds;
}

void check_rms_norm(const Tensor& x, const Tensor& weight) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && weight.dim() == 1 && weight.sym_size(0) == x.sym_size(-1) && x.sym_size(-1) > 0,
                    "weight must be [D], the last dimension of x ", x.sym_sizes(), ", got ", weight.sym_sizes());
  check_same_kind(weight, "weight", x, "x");
}

void check_rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd) {
  check_rms_norm(x, weight);
  check_like(grad, "grad", x, "x");
  check_statistic(rstd, "rstd", x.sym_sizes().slice(0, x.dim() - 1), x, "x");
}

void check_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 3 && x.sym_size(2) % 2 == 0,
                    "x must be [tokens, heads, head_dim] with an even head_dim, got ", x.sym_sizes());
  TORCH_CHECK_VALUE(cos.dim() == 2 && cos.sym_size(0) == x.sym_size(0) && cos.sym_size(1) * 2 == x.sym_size(2),
                    "cos must be [tokens, head_dim / 2] for x ", x.sym_sizes(), ", got ", cos.sym_sizes());
  const auto type = cos.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kDouble, "cos must be float32 or float64, got ", type);
  TORCH_CHECK_VALUE(cos.device() == x.device(), "cos is on ", cos.device(), " but x is on ", x.device());
  check_like(sin, "sin", cos, "cos");
}

void check_gated_activation(const Tensor& gate, const Tensor& up, std::string_view activation) {
  check_floating(gate, "gate");
  check_like(up, "up", gate, "gate");
  TORCH_CHECK_VALUE(activation == "silu" || activation == "gelu_tanh",
                    "activation must be 'silu' or 'gelu_tanh', got '", activation, "'");
}

void check_linear(const Tensor& x, const Tensor& weight) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && weight.dim() == 2 && weight.sym_size(1) == x.sym_size(-1),
                    "weight must be [D, F], F the last dimension of x ", x.sym_sizes(), ", got ", weight.sym_sizes());
  check_same_kind(weight, "weight", x, "x");
}

void check_compensated_output(const Tensor& o, const Tensor& w_o, const Tensor& x, const Tensor& w_c) {
  check_floating(o, "o");
  TORCH_CHECK_VALUE(o.dim() == 2 && w_o.dim() == 2 && w_o.sym_size(1) == o.sym_size(1),
                    "w_o must be [D, F] for o [tokens, F] = ", o.sym_sizes(), ", got ", w_o.sym_sizes());
  TORCH_CHECK_VALUE(x.dim() == 2 && x.sym_size(0) == o.sym_size(0), "x must be [tokens, D] with the tokens of o ",
                    o.sym_sizes(), ", got ", x.sym_sizes());
  TORCH_CHECK_VALUE(w_c.dim() == 2 && w_c.sym_size(0) == w_o.sym_size(0) && w_c.sym_size(1) == x.sym_size(1),
                    "w_c must be [D, D] for w_o ", w_o.sym_sizes(), " and x ", x.sym_sizes(), ", got ",
                    w_c.sym_sizes());
  const auto check_kind = [&](const Tensor& y, const char* name) {
    check_on_device_of(y, name, o, "o");
    // Under autocast the products bring their factors to one dtype.
    if (!at::autocast::is_autocast_enabled(o.device().type())) check_same_kind(y, name, o, "o");
  };
  check_kind(w_o, "w_o"), check_kind(x, "x"), check_kind(w_c, "w_c");
}

void check_linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& labels, int64_t chunk) {
  check_floating(hidden, "hidden");
  TORCH_CHECK_VALUE(hidden.dim() == 2, "hidden must be [tokens, D], got ", hidden.sym_sizes());
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == hidden.sym_size(1),
                    "weight must be [vocab, D] with the D of hidden ", hidden.sym_sizes(), ", got ",
                    weight.sym_sizes());
  check_same_kind(weight, "weight", hidden, "hidden");
  TORCH_CHECK_VALUE(labels.scalar_type() == at::kLong && labels.dim() == 1 && labels.sym_size(0) == hidden.sym_size(0),
                    "labels must be int64 [tokens] = [", hidden.sym_size(0), "], got ", labels.scalar_type(), " ",
                    labels.sym_sizes());
  TORCH_CHECK_VALUE(labels.device() == hidden.device(), "labels is on ", labels.device(), " but hidden is on ",
                    hidden.device());
  TORCH_CHECK_VALUE(chunk > 0, "chunk must be positive, got ", chunk);
}

void check_linear_cross_entropy_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                         const Tensor& labels, const Tensor& lse, int64_t chunk) {
  check_linear_cross_entropy(hidden, weight, labels, chunk);
  check_statistic(grad, "grad", hidden.sym_sizes().slice(0, 1), hidden, "hidden");
  check_statistic(lse, "lse", hidden.sym_sizes().slice(0, 1), hidden, "hidden");
}

at::ScalarType accumulation_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

double resolved_scale(const AttentionOptions& options, int64_t head_dim) {
  return options.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
}

}  // namespace uniattn
