// The operators, callable from C++. Each goes through the dispatcher (torch.ops.uniattn.*), so CPU, CUDA, Meta and
// Autograd kernels apply.
//
// Sequences are packed: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]; sequence s owns tokens
// [cu_seqlens[s], cu_seqlens[s + 1]); cu_seqlens is int32 [sequences + 1] on the tensors' device, empty sequences
// allowed.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace uniattn {

// score = softcap(scale * q k^T), softcap(s) = cap * tanh(s / cap) when cap > 0; token i sees j with j <= i (causal)
// and i - j < window (window > 0).
struct AttentionOptions {
  bool causal = true;
  int64_t window = 0;
  double softcap = 0;
  std::optional<double> scale;  // head_dim^-1/2 when empty
};

// One use of a leader's attention pattern P by a follower. The three gradient handles are zero-stride tensors through
// which the engine carries (dO, V, delta) of the follower to the leader's backward pass; a handle serves exactly one
// attend().
struct Probs {
  at::Tensor q, k, lse;  // lse [heads, tokens] float32
  at::Tensor tiles;      // P itself where it is kept; [heads, 0] where it is rebuilt from q, k and lse
  at::Tensor cu_seqlens;
  at::Tensor grad_handle_out, grad_handle_value, grad_handle_delta;
  AttentionOptions options;
};

struct AttentionResult {
  at::Tensor out;            // [tokens, heads, head_dim]
  std::vector<Probs> probs;  // one per follower
};

// What a superblock's P may take in memory where `keep_probs` leaves the choice to attention().
inline constexpr int64_t kProbsBudget = int64_t{256} << 20;

// O = P V and, for each of `followers` layers, a handle on P = softmax(mask(softcap(scale q k^T))).
//
// keep_probs: true keeps P's visible tiles, in the dtype of q, until the last handle and the graph are gone; false
// rebuilds them from q and k in every follower and in the backward pass, in memory linear in tokens; without a value
// they are kept for followers whose P takes at most probs_budget bytes. Kept is faster, and for CPU tensors only.
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
                          int64_t followers = 0, const AttentionOptions& options = {},
                          std::optional<bool> keep_probs = std::nullopt, int64_t probs_budget = kProbsBudget);

// O_i = P V_i with query head n reading leader head head_map[n] (int64 [heads]; undefined is the identity).
at::Tensor attend(const Probs& probs, const at::Tensor& v, const std::optional<at::Tensor>& head_map = std::nullopt);

// P^T dO [tokens, kv_heads, head_dim], the gradient of attend() with respect to v alone, without autograd. grad_out
// [tokens, heads, head_dim].
at::Tensor attend_backward_value(const Probs& probs, const at::Tensor& grad_out,
                                 const std::optional<at::Tensor>& head_map = std::nullopt);

// x * rsqrt(mean(x^2) + eps) * (weight, or 1 + weight), statistics in float32. x [..., D], weight [D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset = false);

// Rotary embedding in Hugging Face order: pairs (i, i + head_dim / 2). x [tokens, heads, head_dim], cos and sin
// [tokens, head_dim / 2] float32.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// act(gate) * up; activation "silu" or "gelu_tanh".
at::Tensor gated_activation(const at::Tensor& gate, const at::Tensor& up, const char* activation);

// x W^T as at::linear, at the processor's full speed on CPU. x [..., F], weight [D, F]. Differentiable any number of
// times.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight);

// o W_o^T + x W_c^T: the compensation and o_proj as one product. o [tokens, F], w_o [D, F], x [tokens, D], w_c [D, D].
at::Tensor compensated_output(const at::Tensor& o, const at::Tensor& w_o, const at::Tensor& x, const at::Tensor& w_c);

// Cross-entropy of softcap(hidden W^T) against labels, float32 [tokens], 0 where the label is -100. Logits exist for
// `chunk` tokens at a time. hidden [tokens, D], weight [vocab, D], labels [tokens] int64.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& labels,
                                double softcap = 0, int64_t chunk = 1024);

}  // namespace uniattn
