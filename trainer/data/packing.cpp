#include "data/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "support/error.h"

namespace uniattn {

Packing pack_best_fit(const std::vector<int64_t>& lengths, int64_t capacity) {
  std::vector<int64_t> longest_first(lengths.size());
  std::iota(longest_first.begin(), longest_first.end(), 0);
  std::stable_sort(longest_first.begin(), longest_first.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });

  std::vector<std::vector<int64_t>> rows;
  std::map<int64_t, std::vector<size_t>> rows_with_room;  // by tokens left
  for (const int64_t item : longest_first) {
    const int64_t length = lengths[item];
    if (length > capacity) fail("a document of {} tokens does not fit rows of {}", length, capacity);
    auto fit = rows_with_room.lower_bound(length);
    size_t row = rows.size();
    int64_t room = capacity;
    if (fit == rows_with_room.end()) {
      rows.emplace_back();
    } else {
      room = fit->first;
      row = fit->second.back();
      fit->second.pop_back();
      if (fit->second.empty()) rows_with_room.erase(fit);
    }
    rows[row].push_back(item);
    if (room > length) rows_with_room[room - length].push_back(row);
  }

  Packing packing;
  for (const auto& row : rows) {
    packing.items.insert(packing.items.end(), row.begin(), row.end());
    packing.begins.push_back(static_cast<int64_t>(packing.items.size()));
  }
  return packing;
}

int64_t count_best_fit_rows(const std::vector<int64_t>& documents_by_length, int64_t capacity) {
  int64_t rows = 0;
  std::map<int64_t, int64_t> rows_with_room;  // how many, by tokens left
  for (auto length = static_cast<int64_t>(documents_by_length.size()) - 1; length > 0; --length) {
    int64_t items = documents_by_length[static_cast<size_t>(length)];
    if (items > 0 && length > capacity) fail("a document of {} tokens does not fit rows of {}", length, capacity);
    while (items > 0) {
      const auto fit = rows_with_room.lower_bound(length);
      const bool opens = fit == rows_with_room.end();
      const int64_t room = opens ? capacity : fit->first;
      // One at a time where the next item fits the same row again.
      const int64_t filled = opens || room >= 2 * length ? 1 : std::min(items, fit->second);
      if (opens) {
        ++rows;
      } else if ((fit->second -= filled) == 0) {
        rows_with_room.erase(fit);
      }
      if (room > length) rows_with_room[room - length] += filled;
      items -= filled;
    }
  }
  return rows;
}

Packing one_per_row(int64_t items) {
  Packing packing{.items = std::vector<int64_t>(static_cast<size_t>(items)),
                  .begins = std::vector<int64_t>(static_cast<size_t>(items) + 1)};
  std::iota(packing.items.begin(), packing.items.end(), 0);
  std::iota(packing.begins.begin(), packing.begins.end(), 0);
  return packing;
}

}  // namespace uniattn
