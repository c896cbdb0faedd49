#include "tokenizer/bpe_merges.h"

#include <algorithm>

namespace uniattn {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Order of a heap whose front is to be merged first.
bool merged_later(const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

// The standard library hashes an integer to itself, which puts ids that follow each other into neighbouring buckets.
size_t BpeMerges::PairHash::operator()(uint64_t pair) const {
  pair *= 0x9E3779B97F4A7C15;
  return pair ^ pair >> 32;
}

BpeMerges::BpeMerges(const std::vector<Merge>& merges) {
  merges_.reserve(merges.size());
  for (const Merge& merge : merges) {
    merges_.insert_or_assign(pair_key(merge.left, merge.right), Target{merge.result, merge.rank});
  }
}

void BpeMerges::push_candidate(int32_t at, BpeScratch& scratch) const {
  const auto& symbol = scratch.symbols[static_cast<size_t>(at)];
  if (symbol.next < 0) return;
  const int32_t right = scratch.symbols[static_cast<size_t>(symbol.next)].id;
  const auto found = merges_.find(pair_key(symbol.id, right));
  if (found == merges_.end()) return;
  scratch.heap.push_back({found->second.rank, at, symbol.id, right, found->second.result});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), merged_later);
}

void BpeMerges::apply(BpeScratch& scratch, std::vector<int32_t>& ids) const {
  auto& [symbols, heap] = scratch;
  heap.clear();
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i < count; ++i) push_candidate(i, scratch);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), merged_later);
    const auto candidate = heap.back();
    heap.pop_back();
    auto& left = symbols[static_cast<size_t>(candidate.at)];
    // One of the two may have become part of another token since.
    if (left.id != candidate.left || left.next < 0) continue;
    auto& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != candidate.right) continue;
    left.id = candidate.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = candidate.at;
    push_candidate(candidate.at, scratch);
    if (left.previous >= 0) push_candidate(left.previous, scratch);
  }
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[static_cast<size_t>(i)].next) {
    ids.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace uniattn
