// Low-rank residuals and norms over (rows, D) arrays.
//
// A task takes its rows in blocks: H = X A for the block, kept in scratch, then Y from H, B, X and F. Both products run
// on tiles of rows x vectors of columns whose sums stay in registers. While one step of a block computes, it asks for
// the lines of memory that the next one reads. One file, because the products, the norms and the block that they work
// on are one loop to the compiler, and none of them is used by itself.
#pragma once

#include <type_traits>

#include "finish.h"
#include "scratch.h"

namespace laurel::LAUREL_PATH {

constexpr int kRows = kRegisters == 32 ? 8 : 6;  // of a tile
constexpr int kDotRows = kRegisters == 32 ? 6 : 3;
constexpr int kSums = kRegisters == 32 ? 16 : 12;  // independent sums that hide the latency of multiply-adds
constexpr int64_t kDepth = 256;                    // rows of A that a panel keeps in the first-level cache
constexpr int64_t kLine = 16;                      // float32 elements of a cache line

// Calls function(first row, integral_constant rows) for tiles of nearly equal size, at most Most rows each: a tile of
// few rows has too few sums.
template <int Most, typename Function>
LAUREL_INLINE void each_tile(int rows, Function function) {
  const int tiles = (rows + Most - 1) / Most;
  for (int t = 0; t < tiles; ++t) {
    const int first = rows * t / tiles;
    with_count<Most>(rows * (t + 1) / tiles - first, [&](auto m) LAUREL_LAMBDA { function(first, m); });
  }
}

// Rows of some arrays that a later step reads.
template <typename T>
struct Ahead {
  int64_t step;  // from row to row
  int count = 0;
  const T* arrays[2 + kMaxProducts + kMaxPrevious] = {};

  explicit Ahead(int64_t width) : step(width) {}
  void add(const void* array, int64_t row) { arrays[count++] = static_cast<const T*>(array) + row * step; }

  // Asks for the line at one column of rows [first, first + M).
  template <int M>
  LAUREL_INLINE void fetch(int64_t first, int64_t column) const {
    for (int i = 0; i < count; ++i) {
      const T* at = arrays[i] + first * step + column;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) __builtin_prefetch(at + m * step, 0, 2);
    }
  }
};

// H += X A: M rows of X (float32), a panel of V vectors of A, `depth` steps. The first `columns` columns of the result
// go to h, added to what is there if `add`, times `scale`. fetch(k) is called every `fetch_step` steps.
template <int M, int V, typename Fetch>
LAUREL_INLINE void down_tile(const float* x, int64_t x_step, const float* a, int64_t depth, float* h, int64_t h_step,
                             int columns, bool add, float scale, int64_t fetch_step, Fetch fetch) {
  constexpr int kChains = 4 * M * V <= kSums ? 4 : 2 * M * V <= kSums ? 2 : 1;
  Floats sum[kChains][M][V] = {};
  int64_t k = 0;
  while (k + kChains <= depth) {
    const int64_t stop = smaller(depth, k + fetch_step);
    fetch(k);
    for (; k + kChains <= stop; k += kChains) {
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) {
        Floats panel[V];
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) panel[v] = load(a + ((k + c) * V + v) * kWidth);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          Floats value = splat(x[m * x_step + k + c]);
#pragma GCC unroll 3
          for (int v = 0; v < V; ++v) sum[c][m][v] += value * panel[v];
        }
      }
    }
  }
  for (; k < depth; ++k) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[0][m][v] += x[m * x_step + k] * load(a + (k * V + v) * kWidth);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      Floats total = sum[0][m][v];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total += sum[c][m][v];
      float* to = h + m * h_step + v * kWidth;
      const int count = columns - v * kWidth;
      if (count >= kWidth) {
        if (add) total += load(to);
        store(to, total * scale);
      } else if (count > 0) {
        if (add) total += load_part(to, count);
        store_part(to, total * scale, count);
      }
    }
  }
}

// H = X A for M rows and up to four columns, from the transpose of A: sums along D in all lanes.
template <int M, typename T, typename Fetch>
LAUREL_INLINE void dot_tile(const T* x, int64_t x_step, int64_t width, const float* a, int64_t a_step, float* h,
                            int64_t h_step, int columns, float scale, Fetch fetch) {
  Floats sum[M][4] = {};
  const int64_t whole = width / kWidth * kWidth;
  for (int64_t k = 0; k < whole; k += kWidth) {
    if (k % kLine == 0) fetch(k);
    Floats value[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) value[m] = load(x + m * x_step + k);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Floats row = load(a + j * a_step + k);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) sum[m][j] += value[m] * row;
    }
  }
  if (whole < width) {
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      Floats value = load_part(x + m * x_step + whole, static_cast<int>(width - whole));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[m][j] += value * load(a + j * a_step + whole);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    Quad total = sum_lanes(sum[m][0], sum[m][1], sum[m][2], sum[m][3]) * scale;
    for (int j = 0; j < columns; ++j) h[m * h_step + j] = total[j];
  }
}

// Columns [begin, end) of the arrays.
struct Columns {
  int64_t begin, end;
};

template <typename T>
void down_dots(const T* x, int64_t width, const Columns& columns, const Product& product, int rows, float* h,
               int64_t h_step, const Ahead<T>& ahead) {
  const int64_t a_step = round_up(width, kWidth);
  each_tile<kDotRows>(rows, [&](int first, auto m) LAUREL_LAMBDA {
    for (int64_t j = 0; j < product.rank; j += 4) {
      const int count = static_cast<int>(smaller(4, product.rank - j));
      dot_tile<m.value>(x + first * width + columns.begin, width, columns.end - columns.begin,
                        product.down + j * a_step + columns.begin, a_step, h + first * h_step + j, h_step, count,
                        product.scale, [&](int64_t k) LAUREL_LAMBDA {
                          if (j == 0) ahead.template fetch<m.value>(first, k);
                        });
    }
  });
}

// One row of `count` elements in float32.
template <typename T>
void widen_row(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  if (i < count) store(to + i, load_part(from + i, static_cast<int>(count - i)));
}

// What some columns give to H (rows, rank of the product) for a block of rows; `x32` is scratch for kDepth float32
// columns of them.
template <typename T>
void down(const Job& job, const Columns& columns, const Product& product, int64_t row, int rows, float* h, float* x32,
          const Ahead<T>& ahead) {
  const int64_t width = job.width, h_step = job.rank;
  const T* const x = static_cast<const T*>(product.source) + row * width;
  if (product.rank <= kDotRank) return down_dots(x, width, columns, product, rows, h, h_step, ahead);
  const int64_t panel_columns = down_panel(product.rank);
  for (int64_t k = columns.begin; k < columns.end; k += kDepth) {
    const int64_t depth = smaller(kDepth, columns.end - k);
    const float scale = k + depth == columns.end ? product.scale : 1.0f;
    const float* from = x32;
    int64_t step = kDepth;
    if constexpr (std::is_same_v<T, float>) {
      from = x + k, step = width;
    } else {
      for (int m = 0; m < rows; ++m) widen_row(x + m * width + k, depth, x32 + m * kDepth);
    }
    for (int64_t start = 0; start < product.rank; start += panel_columns) {
      const int count = static_cast<int>(smaller(panel_columns, product.rank - start));
      const bool fetches = start == 0 && ahead.count > 0;
      with_count<kPanel / kWidth>((count + kWidth - 1) / kWidth, [&](auto v) LAUREL_LAMBDA {
        constexpr int V = v.value, kMost = V == 3 ? 4 : kRows;
        const float* panel = product.down + start * width + k * V * kWidth;
        each_tile<kMost>(rows, [&](int first, auto m) LAUREL_LAMBDA {
          down_tile<m.value, V>(from + first * step, step, panel, depth, h + first * h_step + start, h_step, count,
                                k > columns.begin, scale, fetches ? kLine : depth, [&](int64_t i) LAUREL_LAMBDA {
                                  if (fetches) ahead.template fetch<m.value>(first, k + i);
                                });
        });
      });
    }
  }
}

// Where a block of rows of the residual goes: to an array of the element type, or to float32 scratch on the way to a
// norm.
template <typename T>
struct Target {
  T* data;
  float* wide;
};

// Y for M rows and V vectors of columns from `column` on; `count` elements in a partial vector. `at` is the element of
// the first row and column in the arrays; b has b_step floats for each rank.
template <int M, int V, Extent E, typename T>
LAUREL_INLINE void up_tile(const Job& job, const float* h, const float* b, int64_t b_step, int64_t at, int64_t column,
                           int count, Target<T> target, float* moments) {
  Floats sum[M][V] = {};
  const int64_t rank = job.rank, width = job.width;
#pragma GCC unroll 4
  for (int64_t k = 0; k < rank; ++k) {
    Floats panel[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) panel[v] = load(b + k * b_step + v * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats factor = splat(h[m * rank + k]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[m][v] += factor * panel[v];
    }
  }
  int64_t start[M];  // bytes from the first row to each
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) start[m] = opaque(m * width * static_cast<int64_t>(sizeof(T)));
  auto row_of = [&](const void* from, int m) LAUREL_LAMBDA { return behind(static_cast<const T*>(from), start[m]); };
  for (int j = 0; j < job.previous; ++j) {
    const void* const earlier = opaque(static_cast<const T*>(job.previous_x[j]) + at);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[m][v] += job.gamma[j] * load_as<E>(row_of(earlier, m) + v * kWidth, count);
    }
  }
  if (job.beta.stride) {  // see fold_beta
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Floats beta = load_as<E>(from(job.beta, column) + v * kWidth, count);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sum[m][v] *= beta;
    }
  }
  // All loads before all stores: with widths that are powers of two the rows of all arrays fall on the same few lines
  // of the cache, and a load waits for a store whose address ends in the same bits. Column by column, because there
  // are no registers left for more.
  const void* const x = opaque(static_cast<const T*>(job.x) + at);
  const void* const f = opaque(static_cast<const T*>(job.f) + at);
  const float *const alphas = from(job.alpha, column), *const betas = from(job.beta, column);
  const float* const biases = from(job.bias, column);
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) {
    const Floats alpha = load_as<E>(alphas + v * kWidth, count);
    const Floats beta = load_as<E>(betas + v * kWidth, count);
    const Floats bias = load_as<E>(biases + v * kWidth, count);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats branch = load_as<E>(row_of(f, m) + v * kWidth, count) + bias;
      sum[m][v] += beta * load_as<E>(row_of(x, m) + v * kWidth, count);
      sum[m][v] += alpha * branch;
    }
  }
  T* const y = opaque(target.data + column);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      if (std::is_same_v<T, float> || !target.wide) {
        store_as<E>(behind(y, start[m]) + v * kWidth, sum[m][v], count);
      } else {
        store_as<E>(target.wide + m * width + column + v * kWidth, sum[m][v], count);
      }
    }
  }
  if (moments) {
    // A copy, because sums whose address is known would have to be kept in memory all the way.
    Floats value[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) value[m][v] = sum[m][v];
    }
    if (job.epilogue == Epilogue::kLayerNorm) {
      gather_moments<M, V, E, true>(value, count, column == 0, moments);
    } else {
      gather_moments<M, V, E, false>(value, count, column == 0, moments);
    }
  }
}

// Some columns of M rows, which begin at a panel and end at one or with the row. h, target and moments are of the first
// row, which is `first` in the block.
template <int M, typename T>
void up_rows(const Job& job, const Columns& columns, const float* h, int64_t row, int first, Target<T> target,
             float* moments, const Ahead<T>& ahead) {
  const int64_t width = job.width, at = row * width;
  int64_t column = columns.begin;
  for (; column + kUpPanel <= columns.end; column += kUpPanel) {
    for (int64_t i = 0; ahead.count && i < kUpPanel; i += kLine) ahead.template fetch<M>(first, column + i);
    up_tile<M, kUpPanel / kWidth, kFull>(job, h, job.up + column * job.rank, kUpPanel, at + column, column, kWidth,
                                         target, moments);
  }
  const float* b = job.up + column * job.rank;
  const int64_t b_step = round_up(width - column, kWidth);
  for (; column + kWidth <= columns.end; column += kWidth, b += kWidth) {
    up_tile<M, 1, kFull>(job, h, b, b_step, at + column, column, kWidth, target, moments);
  }
  if (column < columns.end) {
    up_tile<M, 1, kPart>(job, h, b, b_step, at + column, column, static_cast<int>(width - column), target, moments);
  }
}

// The norm of M rows, whose residual lies in `target`.
template <int M, typename T>
void finish_rows(const Job& job, const float* moments, int64_t row, Target<T> target) {
  T* const y = static_cast<T*>(job.y) + row * job.width;
  if constexpr (std::is_same_v<T, float>) {
    normalise<M>(job, moments, target.data, y, static_cast<T*>(nullptr));
  } else {
    normalise<M>(job, moments, target.wide, y, job.sum ? target.data : nullptr);
  }
}

// A block of rows. With a norm, `moments` is scratch for kRows rows, and each tile gets its norm while it is still in
// the first caches.
template <typename T>
void up(const Job& job, const Columns& columns, const float* h, int64_t row, int rows, Target<T> target,
        float* moments, const Ahead<T>& ahead) {
  each_tile<kRows>(rows, [&](int first, auto m) LAUREL_LAMBDA {
    const int64_t skip = first * job.width;
    const Target<T> to{target.data + skip, target.wide ? target.wide + skip : nullptr};
    up_rows<m.value>(job, columns, h + first * job.rank, row + first, first, to, moments, ahead);
    if (moments) finish_rows<m.value>(job, moments, row + first, to);
  });
}

// Rows [begin, end).
template <typename T>
void run_tokens(const Job& job, int64_t begin, int64_t end) {
  const bool norm = is_norm(job.epilogue);
  constexpr bool kNarrow = !std::is_same_v<T, float>;
  const int64_t width = job.width;
  const Columns columns{0, width};
  const int64_t row_floats = job.rank + (kNarrow ? kDepth : 0) + (kNarrow && norm ? width : 0);
  // Blocks of nearly equal size, whose scratch fits on the stack if one row's does.
  const int64_t most = larger(1, smaller(job.block_rows, kStackFloats / larger(1, row_floats)));
  const int64_t blocks = (end - begin + most - 1) / most;
  Scratch scratch(job, most * row_floats);
  float* const h = scratch.data;
  float* const x32 = h + most * job.rank;
  float* const wide = x32 + (kNarrow ? most * kDepth : 0);
  alignas(64) float moments[kRows * kMoments];

  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t row = begin + (end - begin) * block / blocks;
    const int64_t next = begin + (end - begin) * (block + 1) / blocks;
    const int rows = static_cast<int>(next - row);
    T* const y = static_cast<T*>(job.y) + row * width;
    T* const sum = job.sum ? static_cast<T*>(job.sum) + row * width : nullptr;

    Ahead<T> of_up(width), of_next(width), nothing(width);
    if (job.streams) {
      of_up.add(job.f, row);
      if (job.y != job.f && job.y != job.x) of_up.add(job.y, row);
      for (int j = 0; j < job.previous; ++j) of_up.add(job.previous_x[j], row);
    }
    float* h_to = h;
    for (int p = 0; p < job.products; ++p) {
      down<T>(job, columns, job.product[p], row, rows, h_to, x32, p == 0 ? of_up : nothing);
      if (job.streams && next + rows <= job.rows) of_next.add(job.product[p].source, next);
      h_to += job.product[p].rank;
    }
    up(job, columns, h, row, rows, {norm && sum ? sum : y, norm && kNarrow ? wide : nullptr}, norm ? moments : nullptr,
       of_next);
  }
}

// One share of the columns of all rows, in the job's first phase what they give to H, then their part of Y from the sum
// of all: each share reads its part of A and B alone.
template <typename T>
void run_columns(const Job& job, int64_t share) {
  const int64_t size = round_up(job.rows * job.rank, kWidth);
  const Columns columns{share_begin(job, kUpPanel, share), share_begin(job, kUpPanel, share + 1)};
  const int rows = static_cast<int>(job.rows);
  const Ahead<T> nothing(job.width);
  if (job.phase == 0) {
    Scratch x32(job, std::is_same_v<T, float> ? 0 : rows * kDepth);
    float* h = job.shared + share * size;
    for (int p = 0; p < job.products; ++p) {
      down<T>(job, columns, job.product[p], 0, rows, h, x32.data, nothing);
      h += job.product[p].rank;
    }
    return;
  }
  Scratch h(job, size);
  sum_shares(job.shared, job.parts, size, h.data);
  up<T>(job, columns, h.data, 0, rows, {static_cast<T*>(job.y), nullptr}, nullptr, nothing);
}

}  // namespace laurel::LAUREL_PATH
