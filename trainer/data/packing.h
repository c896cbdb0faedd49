// Which documents share a row.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace uniattn {

// Rows one after the other: row r is items[begins[r] .. begins[r + 1]).
struct Packing {
  std::vector<int64_t> items;
  std::vector<int64_t> begins = {0};
  int64_t rows() const { return static_cast<int64_t>(begins.size()) - 1; }
  std::span<const int64_t> row(int64_t r) const {
    return std::span(items).subspan(static_cast<size_t>(begins[r]), static_cast<size_t>(begins[r + 1] - begins[r]));
  }
};

// Best fit, longest first: each item goes to the fullest row it fits in; items are numbers into `lengths`.
// Deterministic, O(n log n). Throws Error for a length over `capacity`.
Packing pack_best_fit(const std::vector<int64_t>& lengths, int64_t capacity);

// The number of rows that pack_best_fit makes of documents_by_length[l] items of every length l, in memory that does
// not depend on how many there are. Throws Error as it does.
int64_t count_best_fit_rows(const std::vector<int64_t>& documents_by_length, int64_t capacity);

// Item r alone in row r.
Packing one_per_row(int64_t items);

}  // namespace uniattn
