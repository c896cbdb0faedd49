// Which pages of a cache hold the tokens of which sequence. Pure bookkeeping: the tensors are the cache's.
#pragma once
#include <cstdint>
#include <vector>

namespace uniattn {

inline constexpr int64_t kPageSize = 64;  // tokens

// Pages that a sequence of `tokens` takes in layers with this window (0: none). With a window these are at most those
// that one token can have in sight; they are used in turn.
int64_t pages_held(int64_t tokens, int64_t window);

// The pages of the layers that share one window.
class PageTable {
 public:
  explicit PageTable(int64_t window) : window_(window) {}

  int64_t window() const { return window_; }
  // Pages that exist: every number that was ever given out is below.
  int64_t size() const { return size_; }
  int64_t used() const { return size_ - static_cast<int64_t>(free_.size()); }

  // Gives `pages`, those of one sequence, what it needs to hold `tokens`.
  void extend(std::vector<int32_t>& pages, int64_t tokens);
  // Takes them all back.
  void release(std::vector<int32_t>& pages);

  // Where position `position` of a sequence is: page * kPageSize + place in the page.
  static int64_t slot(const std::vector<int32_t>& pages, int64_t position) {
    const int64_t page = position / kPageSize;
    return pages[page % static_cast<int64_t>(pages.size())] * kPageSize + position % kPageSize;
  }
  // The first position that is still held once a sequence has `tokens`.
  int64_t first_held(int64_t tokens) const;

 private:
  int64_t window_, size_ = 0;
  std::vector<int32_t> free_;
};

}  // namespace uniattn
