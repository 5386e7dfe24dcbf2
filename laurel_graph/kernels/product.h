// Products of a wide array with the few ranks of a low-rank map, as tiles in registers.
//
// Narrow products end in ranks: lanes run along ranks, which are rounded up to whole vectors, and neither the other
// axis nor the depth has lanes that would have to be summed up or cut off. Wide ones end in the array's own axes.
#pragma once

#include <type_traits>

#include "finish.h"

namespace laurel::LAUREL_PATH {

// Which stride of a matrix is 1.
enum Order { kRowsTouch, kDepthTouches };

// Rows of a narrow product's depth that are asked for ahead: over channels they lie pages apart, where no hardware
// follows.
constexpr int64_t kAhead = 12;

// Rows of a tile of V vectors of ranks: as many sums as the registers hold.
template <int V>
constexpr int kNarrowRows = (kRegisters == 32 ? 24 : 12) / V;

// M rows (whole, but for the last few) with two strides: more than that no address can hold.
template <int M>
struct Triples {
  const float* base[(M + 2) / 3];
  int64_t step;

  LAUREL_INLINE Triples(const float* from, int64_t step) : step(step) {
#pragma GCC unroll 8
    for (int i = 0; i < (M + 2) / 3; ++i) base[i] = from + 3 * i * step;
  }
  LAUREL_INLINE float at(int m, int64_t k) const { return base[m / 3][m % 3 * step + k]; }
  LAUREL_INLINE void advance(int64_t by) {
#pragma GCC unroll 8
    for (int i = 0; i < (M + 2) / 3; ++i) base[i] += by;
  }
};

// out[m] (+)= sum over k of a[m][k] b[k] for M rows, V vectors of ranks. `step` is a's stride that is not 1.
template <int M, int V, Order O>
void narrow_tile(const float* a, int64_t step, int64_t depth, const float* b, int64_t b_step, float* out,
                 int64_t out_step, bool add) {
  Floats sum[M][V] = {};
  Triples<M> rows(a, step);
  auto multiply = [&](int64_t k) LAUREL_LAMBDA {
    Floats value[V];
    if (O == kRowsTouch && M >= kWidth / 2) {
      __builtin_prefetch(a + kAhead * step);
      if (M > kWidth) __builtin_prefetch(a + kAhead * step + M - 1);
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) value[v] = load(b + v * kWidth);
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) {
      const Floats factor = splat(O == kRowsTouch ? a[m] : rows.at(m, k));
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[m][v] += factor * value[v];
    }
    b += b_step;
    a += step;
  };
  int64_t k = 0;
  if (O == kDepthTouches) {
    for (; k + 4 <= depth; k += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) multiply(i);
      rows.advance(4);
    }
  }
#pragma GCC unroll 1
  for (int i = 0; i < depth - k; ++i) multiply(i);
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* const to = out + m * out_step + v * kWidth;
      store(to, add ? sum[m][v] + load(to) : sum[m][v]);
    }
  }
}

// out (rows, ranks) (+)= a (rows, depth) b (depth, ranks), ranks in whole vectors.
template <Order O>
void narrow_product(const float* a, int64_t step, int64_t rows, int64_t depth, const float* b, int64_t b_step,
                    int64_t ranks, float* out, int64_t out_step, bool add) {
  const int64_t row_step = O == kRowsTouch ? 1 : step;
  auto columns = [&](auto vectors, int64_t j) LAUREL_LAMBDA {
    constexpr int V = vectors.value, M = kNarrowRows<V>;
    int64_t i = 0;
    auto tiles = [&](auto count) LAUREL_LAMBDA {
      for (; i + count.value <= rows; i += count.value) {
        narrow_tile<count.value, V, O>(a + i * row_step, step, depth, b + j, b_step, out + i * out_step + j, out_step,
                                       add);
      }
    };
    tiles(std::integral_constant<int, M>());
    tiles(std::integral_constant<int, M / 3>());
    tiles(std::integral_constant<int, 1>());
  };
  int64_t j = 0;
  for (; j + 2 * kWidth <= ranks; j += 2 * kWidth) columns(std::integral_constant<int, 2>(), j);
  if (j < ranks) columns(std::integral_constant<int, 1>(), j);
}

// out (ranks, to_step) = from (count, from_step) transposed. Writes up to three rows more than `ranks` of them, and
// reads as many columns.
inline void transpose(const float* from, int64_t from_step, int64_t count, int64_t ranks, float* to, int64_t to_step) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t r = 0; r < ranks; r += 4) {
      Quad row[4];
      for (int j = 0; j < 4; ++j) row[j] = load_bits<Quad>(from + (i + j) * from_step + r);
      const Quad a = LAUREL_SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = LAUREL_SHUFFLE(row[2], row[3], 0, 4, 1, 5);
      const Quad c = LAUREL_SHUFFLE(row[0], row[1], 2, 6, 3, 7), d = LAUREL_SHUFFLE(row[2], row[3], 2, 6, 3, 7);
      const Quad column[4] = {LAUREL_SHUFFLE(a, b, 0, 1, 4, 5), LAUREL_SHUFFLE(a, b, 2, 3, 6, 7),
                              LAUREL_SHUFFLE(c, d, 0, 1, 4, 5), LAUREL_SHUFFLE(c, d, 2, 3, 6, 7)};
      for (int j = 0; j < 4; ++j) __builtin_memcpy(to + (r + j) * to_step + i, &column[j], sizeof(Quad));
    }
  }
  for (; i < count; ++i) {
    for (int64_t r = 0; r < ranks; ++r) to[r * to_step + i] = from[i * from_step + r];
  }
}

// Part of a wide product's depth: a (lines, depth), b (depth, lanes) with lanes rounded up to whole vectors.
struct Factors {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step;
  int64_t depth;
};

// scale * data, added to a wide product; one scale for each line or for each lane.
struct Addend {
  const float* data;
  const float* scale;
};

struct Wide {
  const Factors* factors;
  int64_t products;
  const Addend* addends;
  int64_t terms;
  int64_t addend_step;  // from line to line
  float* out;
  int64_t out_step;
  bool relu;
};

constexpr int kWideLines = kRegisters == 32 ? 8 : 4;
constexpr int kWideVectors = kWidth == 4 && kRegisters == 16 ? 2 : 3;

// M lines from `line` on, V vectors from `lane` on, the last one of `count` elements.
template <int M, int V, Extent E, bool kLaneScales>
void wide_tile(const Wide& job, int64_t line, int64_t lane, int count) {
  Floats sum[M][V] = {};
  float* const out = job.out + line * job.out_step + lane;
  const float* const last = job.terms ? job.addends[job.terms - 1].data + line * job.addend_step + lane : out;
  for (int64_t p = 0; p < job.products; ++p) {
    const Factors& factors = job.factors[p];
    Triples<M> rows(factors.a + line * factors.a_step, factors.a_step);
    const float* b = factors.b + lane;
#pragma GCC unroll 1
    for (int64_t k = 0; k < factors.depth; ++k) {
      // Asks for the next lines of what is not in the cache yet, spread over the multiply-adds.
      if (k < 2 * M) {
        const float* const next = k < M ? last + (M + k) * job.addend_step : out + k * job.out_step;
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) __builtin_prefetch(next + v * kWidth);
      }
      Floats value[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) value[v] = load(b + v * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Floats factor = splat(rows.at(m, 0));
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) sum[m][v] += factor * value[v];
      }
      rows.advance(1);
      b += factors.b_step;
    }
  }
  for (int64_t i = 0; i < job.terms; ++i) {
    const Addend& addend = job.addends[i];
    const float* const data = addend.data + line * job.addend_step + lane;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const float* const from = data + m * job.addend_step + v * kWidth;
        const Floats scale = kLaneScales ? load(addend.scale + lane + v * kWidth) : splat(addend.scale[line + m]);
        sum[m][v] += scale * (v == V - 1 ? load_as<E>(from, count) : load(from));
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Floats total = job.relu ? relu(sum[m][v]) : sum[m][v];
      float* const to = out + m * job.out_step + v * kWidth;
      v == V - 1 ? store_as<E>(to, total, count) : store(to, total);
    }
  }
}

// All lines and lanes.
template <bool kLaneScales>
void wide_product(const Wide& job, int64_t lines, int64_t lanes) {
  auto across = [&](auto rows, int64_t line) LAUREL_LAMBDA {
    constexpr int M = rows.value, V = kWideVectors;
    int64_t lane = 0;
    for (; lane + V * kWidth <= lanes; lane += V * kWidth) {
      wide_tile<M, V, kFull, kLaneScales>(job, line, lane, kWidth);
    }
    for (; lane + kWidth <= lanes; lane += kWidth) wide_tile<M, 1, kFull, kLaneScales>(job, line, lane, kWidth);
    if (lane < lanes) wide_tile<M, 1, kPart, kLaneScales>(job, line, lane, static_cast<int>(lanes - lane));
  };
  int64_t line = 0;
  for (; line + kWideLines <= lines; line += kWideLines) across(std::integral_constant<int, kWideLines>(), line);
  for (; line < lines; ++line) across(std::integral_constant<int, 1>(), line);
}

}  // namespace laurel::LAUREL_PATH
