// P where it is kept between the passes of a superblock: [heads, elements] in the dtype of q, one block of rows behind
// the other. A block is up to kTileRows query rows of one sequence with the keys that they see; how it is laid out is
// the affair of the kernels that write and read it.
//
// The size is what one sequence of all the tokens needs, which no pack of as many exceeds: it follows from metadata
// alone, as torch.compile wants.
#pragma once
#include <ATen/core/Tensor.h>

#include "uniattn/ops.h"

namespace uniattn {

inline constexpr int64_t kTileRows = 64;

// The bytes that the tiles of q's pattern take.
c10::SymInt tiles_bytes(const at::Tensor& q, const AttentionOptions& options);
// Tiles to be written, or [heads, 0] without `keep`.
at::Tensor empty_tiles(const at::Tensor& q, const AttentionOptions& options, bool keep);
// Elements of one head that P of the last `queries` tokens of packed sequences of `keys` tokens takes at most.
c10::SymInt prefill_tiles_size(const c10::SymInt& queries, const c10::SymInt& keys, int64_t window);
// Whether `tiles` hold P; throws where they are of another size.
bool holds_probs(const at::Tensor& tiles, const at::Tensor& q, const AttentionOptions& options);

}  // namespace uniattn
