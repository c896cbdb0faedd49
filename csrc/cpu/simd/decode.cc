// Attention of one token over pages of cached keys and values: scores and sums in float32, keys and values read once,
// all query heads of a KV group together.
#include "cpu/kernels.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/tables.h"
#include "cpu/simd/vec.h"

namespace uniattn::cpu::UNIATTN_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
#if defined(__AVX512F__)
constexpr int kHeadsPerStep = 4, kVectorsPerStep = 4;  // of 32 registers
#else
constexpr int kHeadsPerStep = 4, kVectorsPerStep = 2;  // of 16
#endif

// The positions of a page that a split covers, counted within the page.
struct Part {
  int64_t begin, end;
};

Part part_of(const DecodeArgs& args, int64_t page, int64_t page_size) {
  const int64_t first = page * page_size;
  return {args.begin > first ? args.begin - first : 0, args.end - first < page_size ? args.end - first : page_size};
}

// [page_size, head_dim] of one page and head.
template <class T>
const T* block(const CachedHeads& cache, int64_t page, int64_t kv_head) {
  const int64_t index = cache.pages[page % cache.slots] * cache.kv_heads + kv_head;
  return static_cast<const T*>(cache.data) + index * cache.page_size * cache.head_dim;
}

// Calls f(page, part) for the pages of a split.
template <class F>
void for_each_page(const DecodeArgs& args, int64_t page_size, F f) {
  for (int64_t page = args.begin / page_size; page * page_size < args.end; ++page)
    f(page, part_of(args, page, page_size));
}

// Scores of one page, scaled by nothing yet. Whole vectors of keys: what a part leaves out is hidden afterwards.
template <class T>
void score_page(const DecodeArgs& args, int64_t page, Part part) {
  const int64_t d = args.k.head_dim, per_group = args.heads / args.k.kv_heads;
  const int64_t column = (page - args.first_page) * args.k.page_size;
  for (int64_t head = 0; head < args.heads; ++head) {
    const T *q = static_cast<const T*>(args.q) + head * d, *keys = block<T>(args.k, page, head / per_group);
    for (int64_t key = part.begin / kLanes * kLanes; key < part.end; key += kLanes) {
      store(args.rows[head] + column + key, dots(q, keys + key * d, d));
    }
  }
}

void fill(float* x, int64_t begin, int64_t end, float value) {
  for (int64_t i = begin; i < end; ++i) x[i] = value;
}

// A head's scores in the split's pages become exp(score - maximum), 0 for the positions outside the split.
void exponentiate(const DecodeArgs& args, int64_t head) {
  const int64_t page_size = args.k.page_size, origin = args.first_page * page_size;
  float* row = args.rows[head] - origin;
  const int64_t first = args.begin / page_size * page_size, last = (args.end + page_size - 1) / page_size * page_size;
  fill(row, first, args.begin, -kInfinity);
  fill(row, args.end, last, -kInfinity);
  const Vec cap = broadcast(args.softcap),
            factor = broadcast(args.softcap > 0 ? args.scale / args.softcap : args.scale);
  Vec top = broadcast(-kInfinity);
  for (int64_t i = first; i < last; i += kLanes) {
    Vec score = load(row + i) * factor;
    if (args.softcap > 0) score = load(row + i) == broadcast(-kInfinity) ? broadcast(-kInfinity) : cap * tanh(score);
    store(row + i, score);
    top = max(top, score);
  }
  const float maximum = largest(top);
  Vec total = {};
  for (int64_t i = first; i < last; i += kLanes) {
    const Vec weight = exp(load(row + i) - maximum);
    store(row + i, weight);
    total += weight;
  }
  args.maximum[head] = maximum;
  args.total[head] = sum(total);
}

// out [heads, vectors * kLanes] += weights [heads][column + key] * values [key][...]; `width` lanes where one vector is
// not full.
template <class T, int heads, int vectors>
void add_values_step(float* const* weights, int64_t column, Part part, const T* values, int64_t d, float* out,
                     int64_t width) {
  const auto load_vector = [&](const auto* p, int j) { return vectors == 1 ? load(p, width) : load(p + j * kLanes); };
  Vec total[heads][vectors];
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) total[h][j] = load_vector(out + h * d, j);
  }
  for (int64_t key = part.begin; key < part.end; ++key) {
    Vec value[vectors];
    for (int j = 0; j < vectors; ++j) value[j] = load_vector(values + key * d, j);
    for (int h = 0; h < heads; ++h) {
      const Vec weight = broadcast(weights[h][column + key]);
      for (int j = 0; j < vectors; ++j) total[h][j] += weight * value[j];
    }
  }
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) {
      vectors == 1 ? store(out + h * d, total[h][j], width) : store(out + h * d + j * kLanes, total[h][j]);
    }
  }
}

// Columns [begin, end) of the head_dim.
template <class T, int heads>
void add_columns(float* const* weights, int64_t column, Part part, const T* values, int64_t d, float* out,
                 int64_t begin, int64_t end) {
  if (part.begin == part.end) return;
  constexpr int wide = kVectorsPerStep * kLanes;
  int64_t c = begin;
  for (; c + wide <= end; c += wide) {
    add_values_step<T, heads, kVectorsPerStep>(weights, column, part, values + c, d, out + c, wide);
  }
  for (; c < end; c += kLanes) add_values_step<T, heads, 1>(weights, column, part, values + c, d, out + c, end - c);
}

template <int heads, class T>
void add_values(float* const* weights, int64_t column, Part part, const T* values, int64_t d, float* out) {
  add_columns<T, heads>(weights, column, part, values, d, out, 0, d);
}

#if defined(__AVX512BF16__)
constexpr int64_t kPairedKeys = 64, kPairedColumns = 2 * kLanes;

// Weights of some keys of a head, from an even one on, as bfloat16: what any product with P in bfloat16 takes.
struct PairedWeights {
  alignas(64) BFloat16 of_key[kPairedKeys];
};

// out [heads, columns] += weights * values over `keys` keys, an even number: a product and sum of two keys at once.
template <int heads, int columns>
void add_pairs_step(const PairedWeights* weights, int64_t keys, const BFloat16* values, int64_t d, float* out) {
  constexpr int vectors = columns / kLanes;
  Vec total[heads][vectors];
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) total[h][j] = load(out + h * d + j * kLanes);
  }
  for (int64_t key = 0; key < keys; key += 2) {
    const BFloat16* first = values + key * d;
    Int value[vectors];
    for (int j = 0; j < vectors; j += 2) {
      const Int even = load_words(first + j * kLanes), odd = load_words(first + d + j * kLanes);
      value[j] = paired_low(even, odd), value[j + 1] = paired_high(even, odd);
    }
    for (int h = 0; h < heads; ++h) {
      const Int weight = Int{} + *reinterpret_cast<const LooseWord*>(weights[h].of_key + key);
      for (int j = 0; j < vectors; ++j) total[h][j] = add_pair_products(total[h][j], weight, value[j]);
    }
  }
  for (int h = 0; h < heads; ++h) {
    for (int j = 0; j < vectors; ++j) store(out + h * d + j * kLanes, total[h][j]);
  }
}

// Columns [0, end) for keys [begin, begin + keys) of a page, both even. Not inline: the registers of its loop are all
// there are.
template <int heads>
[[gnu::noinline]] void add_pairs(float* const* weights, int64_t column, int64_t begin, int64_t keys,
                                 const BFloat16* values, int64_t d, float* out, int64_t end) {
  PairedWeights paired[heads];
  for (int h = 0; h < heads; ++h) {
    const float* row = weights[h] + column + begin;
    for (int64_t i = 0; i < keys; i += kLanes) store(paired[h].of_key + i, load(row + i, keys - i));
  }
  const BFloat16* first = values + begin * d;
  int64_t c = 0;
  for (; c + 2 * kPairedColumns <= end; c += 2 * kPairedColumns) {
    add_pairs_step<heads, 2 * kPairedColumns>(paired, keys, first + c, d, out + c);
  }
  for (; c < end; c += kPairedColumns) add_pairs_step<heads, kPairedColumns>(paired, keys, first + c, d, out + c);
}

template <int heads>
void add_values(float* const* weights, int64_t column, Part part, const BFloat16* values, int64_t d, float* out) {
  const int64_t columns = d / kPairedColumns * kPairedColumns;
  const int64_t begin = part.begin + part.begin % 2, end = part.end - part.end % 2;
  add_columns<BFloat16, heads>(weights, column, {part.begin, begin}, values, d, out, 0, columns);
  for (int64_t key = begin; key < end; key += kPairedKeys) {
    add_pairs<heads>(weights, column, key, end - key < kPairedKeys ? end - key : kPairedKeys, values, d, out, columns);
  }
  add_columns<BFloat16, heads>(weights, column, {end, part.end}, values, d, out, 0, columns);
  add_columns<BFloat16, heads>(weights, column, part, values, d, out, columns, d);
}
#endif

template <class T>
void value_page(const DecodeArgs& args, int64_t page, Part part) {
  const int64_t d = args.v.head_dim, per_group = args.heads / args.v.kv_heads;
  const int64_t column = (page - args.first_page) * args.v.page_size;
  for (int64_t group = 0; group < args.v.kv_heads; ++group) {
    const T* values = block<T>(args.v, page, group);
    int64_t head = group * per_group;
    for (; head + kHeadsPerStep <= (group + 1) * per_group; head += kHeadsPerStep) {
      add_values<kHeadsPerStep>(args.rows + head, column, part, values, d, args.out + head * d);
    }
    for (; head < (group + 1) * per_group; ++head) {
      add_values<1>(args.rows + head, column, part, values, d, args.out + head * d);
    }
  }
}

template <class T>
void decode_follower_of(const DecodeArgs& args) {
  fill(args.out, 0, args.heads * args.v.head_dim, 0);
  for_each_page(args, args.v.page_size, [&](int64_t page, Part part) { value_page<T>(args, page, part); });
}

template <class T>
void decode_leader_of(const DecodeArgs& args) {
  for_each_page(args, args.k.page_size, [&](int64_t page, Part part) { score_page<T>(args, page, part); });
  for (int64_t head = 0; head < args.heads; ++head) exponentiate(args, head);
  decode_follower_of<T>(args);
}

void decode_leader(const DecodeArgs& args) {
  args.k.type == Type::kFloat32 ? decode_leader_of<float>(args) : decode_leader_of<BFloat16>(args);
}

void decode_follower(const DecodeArgs& args) {
  args.v.type == Type::kFloat32 ? decode_follower_of<float>(args) : decode_follower_of<BFloat16>(args);
}

template <class T>
void write_sum(const DecodeMergeArgs& args, const float* factors_maximum, float maximum, float inverse, T* result) {
  for (int64_t c = 0; c < args.head_dim; c += kLanes) {
    const int64_t width = args.head_dim - c;
    Vec total = {};
    for (int64_t s = 0; s < args.splits; ++s) {
      const float factor =
          factors_maximum == nullptr ? 1 : exp(broadcast(factors_maximum[s * args.statistic_stride] - maximum))[0];
      total += load(args.out + s * args.out_stride + c, width) * factor;
    }
    store(result + c, total * inverse, width);
  }
}

void decode_merge(const DecodeMergeArgs& args) {
  float maximum = -kInfinity, total = 0, inverse = 1;
  if (args.maximum != nullptr) {
    for (int64_t s = 0; s < args.splits; ++s) {
      const float of_split = args.maximum[s * args.statistic_stride];
      maximum = of_split > maximum ? of_split : maximum;
    }
    for (int64_t s = 0; s < args.splits; ++s) {
      const int64_t i = s * args.statistic_stride;
      total += args.total[i] * exp(broadcast(args.maximum[i] - maximum))[0];
    }
    inverse = 1 / total;
  }
  args.type == Type::kFloat32 ? write_sum(args, args.maximum, maximum, inverse, static_cast<float*>(args.result))
                              : write_sum(args, args.maximum, maximum, inverse, static_cast<BFloat16*>(args.result));
  if (args.row == nullptr) return;
  for (int64_t s = 0; s < args.splits; ++s) {
    const float factor = inverse * exp(broadcast(args.maximum[s * args.statistic_stride] - maximum))[0];
    const int64_t last = s + 1 < args.splits ? (s + 1) * args.split_size : args.columns;
    for (int64_t i = s * args.split_size; i < last; i += kLanes) store(args.row + i, load(args.row + i) * factor);
  }
}

}  // namespace

void fill_decode(Kernels& table) {
  table.decode_leader = decode_leader;
  table.decode_follower = decode_follower;
  table.decode_merge = decode_merge;
}

}  // namespace uniattn::cpu::UNIATTN_ISA
