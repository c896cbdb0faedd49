#include "inference/page_table.h"

#include <algorithm>

namespace uniattn {

int64_t pages_held(int64_t tokens, int64_t window) {
  const int64_t all = (tokens + kPageSize - 1) / kPageSize;
  // A window that does not begin with a page reaches into one more.
  return window > 0 && window < tokens ? std::min(all, (window + kPageSize - 2) / kPageSize + 1) : all;
}

void PageTable::extend(std::vector<int32_t>& pages, int64_t tokens) {
  const auto needed = static_cast<size_t>(pages_held(tokens, window_));
  while (pages.size() < needed) {
    if (free_.empty()) {
      pages.push_back(static_cast<int32_t>(size_++));
    } else {
      pages.push_back(free_.back());
      free_.pop_back();
    }
  }
}

void PageTable::release(std::vector<int32_t>& pages) {
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
  pages.clear();
}

int64_t PageTable::first_held(int64_t tokens) const {
  const int64_t all = (tokens + kPageSize - 1) / kPageSize;
  return (all - pages_held(tokens, window_)) * kPageSize;
}

}  // namespace uniattn
