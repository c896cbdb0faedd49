#include "probs_tiles.h"

#include <ATen/ATen.h>

namespace uniattn {

using at::Tensor;

namespace {

// Elements of one head: rows and keys are counted in whole tiles of kTileRows.
c10::SymInt tiles_size(const Tensor& q, const AttentionOptions& options) {
  const c10::SymInt rows = (q.sym_size(0) + (kTileRows - 1)) / kTileRows;
  if (!options.causal) return rows * rows * (kTileRows * kTileRows);
  // The n-th tile of rows sees n tiles of keys, or as many as a window touches.
  const int64_t before = options.window - 1;
  const int64_t in_window = options.window > 0 ? before / kTileRows + (before % kTileRows > 0) + 1 : INT64_MAX;
  const c10::SymInt most = rows.min(in_window);
  return (most * (most + 1) / 2 + (rows - most) * most) * (kTileRows * kTileRows);
}

}  // namespace

c10::SymInt tiles_bytes(const Tensor& q, const AttentionOptions& options) {
  return q.sym_size(1) * tiles_size(q, options) * static_cast<int64_t>(q.element_size());
}

Tensor empty_tiles(const Tensor& q, const AttentionOptions& options, bool keep) {
  return at::empty_symint({q.sym_size(1), keep ? tiles_size(q, options) : c10::SymInt(0)}, q.options());
}

// A row of the n-th query, counted over all sequences, stands at keys - queries + n among the keys of one sequence and
// at no later place in any other pack. Its tile sees up to 63 keys more, and whole tiles of them; a window cuts the
// first.
c10::SymInt prefill_tiles_size(const c10::SymInt& queries, const c10::SymInt& keys, int64_t window) {
  const c10::SymInt first = keys - queries + 2 * kTileRows;
  if (window == 0) return queries * first + queries * (queries - 1) / 2;
  const c10::SymInt most = keys.min(window) + 3 * kTileRows;
  const c10::SymInt below = (most - first).max(0).min(queries);
  return below * first + below * (below - 1) / 2 + (queries - below) * most;
}

bool holds_probs(const Tensor& tiles, const Tensor& q, const AttentionOptions& options) {
  if (tiles.size(1) == 0) return false;
  const int64_t needed = tiles_size(q, options).expect_int();
  TORCH_CHECK_VALUE(tiles.size(1) == needed && tiles.is_contiguous(),
                    "tiles must be [heads, 0], or contiguous [heads, ", needed,
                    "] as attention() returns them for these options, got ", tiles.sizes());
  return true;
}

}  // namespace uniattn
