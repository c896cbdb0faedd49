// The list of operators.
//
// Shapes: q, out [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; lse, delta [heads, tokens] float32
// (float64 for float64 input); cu_seqlens int32 [sequences + 1]; head_map int64 [heads], the leader head that each of
// the follower's query heads reads. scale defaults to head_dim^-1/2; window and softcap are off at 0. tiles is P itself
// where it is kept (probs_tiles.h), and [heads, 0] where it is rebuilt from q, k and lse.
#include <torch/library.h>

#define UNIATTN_SIGHT "int window=0, float softcap=0., float? scale=None"
#define UNIATTN_MASK "bool causal=True, " UNIATTN_SIGHT

TORCH_LIBRARY(uniattn, m) {
  // Differentiable. `attention` returns three gradient handles per follower, in the order that `attend` takes them.
  // keep_probs None keeps P where its tiles take at most probs_budget bytes.
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, int followers=0, " UNIATTN_MASK
        ", bool? keep_probs=None, int probs_budget=268435456) -> (Tensor out, Tensor lse, Tensor tiles, Tensor[] "
        "handles)");
  m.def(
      "attend(Tensor q, Tensor k, Tensor lse, Tensor tiles, Tensor v, Tensor cu_seqlens, Tensor handle_out, Tensor "
      "handle_value, "
      "Tensor handle_delta, Tensor? head_map=None, " UNIATTN_MASK ") -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool unit_offset=False) -> Tensor");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("gated_activation(Tensor gate, Tensor up, str activation) -> Tensor");
  m.def("linear(Tensor x, Tensor weight) -> Tensor");
  m.def("compensated_output(Tensor o, Tensor w_o, Tensor x, Tensor w_c) -> Tensor");
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels, float softcap=0., int chunk=1024) -> Tensor");

  // Raw: what the differentiable operators call below autograd.
  m.def("attention_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, " UNIATTN_MASK
        ", bool keep_probs=False) -> (Tensor out, Tensor lse, Tensor tiles)");
  m.def(
      "attend_forward(Tensor q, Tensor k, Tensor lse, Tensor tiles, Tensor v, Tensor cu_seqlens, Tensor? "
      "head_map=None, " UNIATTN_MASK ") -> Tensor");
  // dV = P^T dO of one follower.
  m.def(
      "attend_backward_value(Tensor q, Tensor k, Tensor lse, Tensor tiles, Tensor grad_out, Tensor cu_seqlens, Tensor? "
      "head_map=None, " UNIATTN_MASK ") -> Tensor");
  // The gradients of a whole superblock with respect to the leader's q, k and v, in one pass over P. The lists hold one
  // entry per layer, the leader (whose head map is None) first; delta is on each layer's own query heads.
  m.def(
      "superblock_backward(Tensor q, Tensor k, Tensor lse, Tensor tiles, Tensor cu_seqlens, Tensor[] grad_out, "
      "Tensor[] "
      "v, Tensor[] delta, Tensor?[] head_map, " UNIATTN_MASK ") -> (Tensor dq, Tensor dk, Tensor dv)");
  // delta = rowsum(grad_out * out) -> [heads, tokens].
  m.def("attention_delta(Tensor grad_out, Tensor out) -> Tensor");
  m.def("rms_norm_forward(Tensor x, Tensor weight, float eps, bool unit_offset) -> (Tensor y, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd, bool unit_offset) -> (Tensor dx, Tensor "
      "dweight)");
  m.def("gated_activation_backward(Tensor grad, Tensor gate, Tensor up, str activation) -> (Tensor dgate, Tensor dup)");
  m.def(
      "linear_cross_entropy_forward(Tensor hidden, Tensor weight, Tensor labels, float softcap, int chunk) -> "
      "(Tensor loss, Tensor lse)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor labels, Tensor lse, float "
      "softcap, "
      "int chunk) -> (Tensor dhidden, Tensor dweight)");

  // Generation, without gradients: see uniattn/decode.h. cache [pages, kv_heads, page_size, head_dim]; page_table int32
  // [batch, slots]; lengths int32 [batch]; slots int64 [tokens].
  m.def("append_to_cache(Tensor(a!) cache, Tensor x, Tensor slots) -> ()");
  m.def("read_cache(Tensor cache, Tensor slots) -> Tensor");
  m.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor lengths, int max_length, "
      "bool "
      "return_probs=True, " UNIATTN_SIGHT ") -> (Tensor out, Tensor probs)");
  m.def(
      "decode_attend(Tensor probs, Tensor v_cache, Tensor page_table, Tensor lengths, Tensor? head_map=None, int "
      "window=0) -> Tensor");
  // tiles [heads, elements] in the dtype of q: the leader leaves P there, a follower reads it; None: P is rebuilt.
  m.def("prefill_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, " UNIATTN_SIGHT
        ", Tensor(a!)? tiles=None) -> (Tensor out, Tensor lse)");
  m.def(
      "prefill_attend(Tensor q, Tensor k, Tensor lse, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? "
      "head_map=None, " UNIATTN_SIGHT ", Tensor? tiles=None) -> Tensor");
}
