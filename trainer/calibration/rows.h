// Token rows as the fit of one layer's attention branch sees them.
#pragma once
#include <functional>
#include <vector>

#include "uniattn/ops.h"

namespace uniattn {

// Rows of some documents. The branch that is fitted should give scale * (heads W_o^T + x W_c^T) = target, where heads
// are the outputs of the query heads.
struct FitRows {
  bool held_out = false;
  at::Tensor x;          // [T, D] float32: the layer's normed input in the unified stream
  at::Tensor target;     // [T, D]
  at::Tensor scale;      // [T, 1]; undefined is 1
  const Probs* probs{};  // share_probs: the leader's P, in the unified stream
  at::Tensor heads;  // [T, heads * head_dim] where they do not depend on what is fitted (no `probs`); else undefined
};

struct RowFilter {
  bool fitted = true, held_out = true;
  bool ranking = false;  // only the documents that head maps are ranked on
};

// Shows this rank's rows, some documents at a time, in the same order every time.
using RowStream = std::function<void(const RowFilter&, const std::function<void(const FitRows&)>&)>;

// The weights of an attention branch without its queries and keys, float32. Undefined where the layer has none.
struct Branch {
  at::Tensor v;                     // [kv_heads * head_dim, D]
  at::Tensor o;                     // [D, heads * head_dim]
  at::Tensor compensation;          // [D, D]
  std::vector<int64_t> head_map{};  // empty is the identity
};

// The outputs of the query heads [T, heads * head_dim] with values x v^T.
at::Tensor branch_heads(const FitRows& rows, const at::Tensor& v, const std::vector<int64_t>& head_map);

// What the branch gives: scale * (heads W_o^T + x W_c^T), [T, D]. The second takes the heads' outputs from who has
// them.
at::Tensor branch_output(const FitRows& rows, const Branch& branch);
at::Tensor branch_output(const FitRows& rows, const Branch& branch, const at::Tensor& heads);

at::Tensor scaled(const FitRows& rows, const at::Tensor& values);

}  // namespace uniattn
