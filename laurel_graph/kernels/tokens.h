// Low-rank residuals and norms over (rows, D) arrays.
//
// A task takes its rows in blocks: H = X A for the block, kept in scratch, then Y from H, B, X and F in one sweep.
// Both products run on tiles of kRows x kPanel accumulators that stay in registers.
#pragma once

#include <type_traits>

#include "finish.h"
#include "scratch.h"

namespace laurel::LAUREL_PATH {

constexpr int kRows = kRegisters == 32 ? 8 : 6;
constexpr int kUpRows = kRegisters == 32 ? 6 : 3;  // of the wider tiles of the second product
constexpr int kDotRows = kRegisters == 32 ? 6 : 3;
constexpr int64_t kDepth = 256;  // rows of A that a panel keeps in the first-level cache

// Calls function(integral_constant n) for n in [1, Most].
template <int Most, typename Function>
LAUREL_INLINE void with_count(int n, Function function) {
  if constexpr (Most > 1) {
    if (n != Most) return with_count<Most - 1>(n, function);
  }
  function(std::integral_constant<int, Most>());
}

// H += X A: M rows of X (float32), a panel of V vectors of A, `depth` steps. The first `columns` columns of the result
// go to h, added to what is there if `add`, times `scale`.
template <int M, int V>
void down_tile(const float* x, int64_t x_step, const float* a, int64_t depth, float* h, int64_t h_step, int columns,
               bool add, float scale) {
  constexpr int kChains = M * V >= 8 ? 1 : M * V >= 4 ? 2 : 4;  // enough independent sums to hide the latency
  Floats sum[kChains][M][V] = {};
  int64_t k = 0;
  for (; k + kChains <= depth; k += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      Floats panel[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) panel[v] = load(a + ((k + c) * V + v) * kWidth);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        Floats value = splat(x[m * x_step + k + c]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[c][m][v] += value * panel[v];
      }
    }
  }
  for (; k < depth; ++k) {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) sum[0][m][v] += x[m * x_step + k] * load(a + (k * V + v) * kWidth);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
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
template <int M, typename T>
void dot_tile(const T* x, int64_t x_step, int64_t width, const float* a, int64_t a_step, float* h, int64_t h_step,
              int columns, float scale) {
  Floats sum[M][4] = {};
  const int64_t whole = width / kWidth * kWidth;
  for (int64_t k = 0; k < whole; k += kWidth) {
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
    for (int m = 0; m < M; ++m) {
      Floats value = load_part(x + m * x_step + whole, static_cast<int>(width - whole));
      for (int j = 0; j < 4; ++j) sum[m][j] += value * load(a + j * a_step + whole);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    Quad total = sum_lanes(sum[m][0], sum[m][1], sum[m][2], sum[m][3]) * scale;
    for (int j = 0; j < columns; ++j) h[m * h_step + j] = total[j];
  }
}

// H (rows, rank of the product) for `rows` rows; `x32` is scratch for kDepth float32 columns of them.
template <typename T>
void down(const Job& job, const Product& product, int64_t row, const int* tiles, int count, float* h, float* x32) {
  const int64_t width = job.width, h_step = job.rank;
  const T* x = static_cast<const T*>(product.source) + row * width;
  if (product.rank <= kDotRank) {
    const int64_t a_step = round_up(width, kWidth);
    for (int t = 0; t < count; ++t) {
      for (int left = tiles[t]; left > 0;) {
        const int rows = left < kDotRows ? left : kDotRows;
        for (int64_t j = 0; j < product.rank; j += 4) {
          const int columns = static_cast<int>(smaller(4, product.rank - j));
          with_count<kDotRows>(rows, [&](auto m) {
            dot_tile<m.value>(x, width, width, product.down + j * a_step, a_step, h + j, h_step, columns,
                              product.scale);
          });
        }
        x += rows * width, h += rows * h_step, left -= rows;
      }
    }
    return;
  }
  for (int64_t k = 0; k < width; k += kDepth) {
    const int64_t depth = smaller(kDepth, width - k);
    const float scale = k + depth == width ? product.scale : 1.0f;
    for (int64_t start = 0; start < product.rank; start += kPanel) {
      const int columns = static_cast<int>(smaller(kPanel, product.rank - start));
      const int vectors = columns > kWidth ? 2 : 1;
      const float* panel = product.down + start * width + k * vectors * kWidth;
      int64_t first = 0;
      for (int t = 0; t < count; ++t) {
        const float* from;
        int64_t step;
        if constexpr (std::is_same_v<T, float>) {
          from = x + first * width + k, step = width;
        } else {
          from = x32 + first * kDepth, step = kDepth;
          if (start == 0) {
            for (int m = 0; m < tiles[t]; ++m) {
              const T* narrow_row = x + (first + m) * width + k;
              float* wide_row = x32 + (first + m) * kDepth;
              int64_t i = 0;
              for (; i + kWidth <= depth; i += kWidth) store(wide_row + i, load(narrow_row + i));
              if (i < depth) store(wide_row + i, load_part(narrow_row + i, static_cast<int>(depth - i)));
            }
          }
        }
        float* to = h + first * h_step + start;
        with_count<kRows>(tiles[t], [&](auto m) {
          if (vectors == 2) {
            down_tile<m.value, 2>(from, step, panel, depth, to, h_step, columns, k > 0, scale);
          } else {
            down_tile<m.value, 1>(from, step, panel, depth, to, h_step, columns, k > 0, scale);
          }
        });
        first += tiles[t];
      }
    }
  }
}

// Where rows of the residual go: to an array of the element type, or to float32 scratch on the way to a norm.
template <typename T>
struct Target {
  T* data;
  float* wide;
};

// Y for M rows and V vectors of columns from `column` on; `count` elements in a partial vector. `at` is the element of
// the first row and column in the arrays; b has b_step floats for each rank.
template <int M, int V, Extent E, typename T>
void up_tile(const Job& job, const float* h, const float* b, int64_t b_step, int64_t at, int64_t column, int count,
             Target<T> target) {
  Floats sum[M][V] = {};
  const int64_t rank = job.rank, width = job.width;
  if (V > 1) b_step = kPanel;
  const float* const next = b + rank * kPanel;  // the panel of the third and fourth vector
  for (int64_t k = 0; k < rank; ++k) {
    Floats panel[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) panel[v] = load((v < 2 ? b : next) + k * b_step + v % 2 * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Floats value = splat(h[m * rank + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] += value * panel[v];
    }
  }
  for (int j = 0; j < job.previous; ++j) {
    const T* from = static_cast<const T*>(job.previous_x[j]) + at;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] += job.gamma[j] * load_as<E>(from + m * width + v * kWidth, count);
    }
  }
  Floats alpha[V], beta[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    alpha[v] = load_vector<E>(job.alpha, column + v * kWidth, count);
    beta[v] = load_vector<E>(job.beta, column + v * kWidth, count);
  }
  // Row by row, and all loads before all stores: with widths that are powers of two the rows of all arrays fall on the
  // same few lines of the cache, and a load waits for a store whose address ends in the same bits.
  auto finish = [&](auto biased) LAUREL_LAMBDA {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Floats branch = load_as<E>(static_cast<const T*>(job.f) + at + m * width + v * kWidth, count);
        if (biased.value) branch += load_vector<E>(job.bias, column + v * kWidth, count);
        sum[m][v] += load_as<E>(static_cast<const T*>(job.x) + at + m * width + v * kWidth, count);
        sum[m][v] = alpha[v] * branch + beta[v] * sum[m][v];
      }
    }
  };
  if (job.biased) {
    finish(std::true_type());
  } else {
    finish(std::false_type());
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t to = m * width + column + v * kWidth;
      if (std::is_same_v<T, float> || !target.wide) {
        store_as<E>(target.data + to, sum[m][v], count);
      } else {
        store_as<E>(target.wide + to, sum[m][v], count);
      }
    }
  }
}

// All columns of M rows.
template <int M, typename T>
void up_rows(const Job& job, const float* h, int64_t row, Target<T> target) {
  int64_t start = 0;
  for (; job.width - start >= 2 * kPanel; start += 2 * kPanel) {
    up_tile<M, 4, kFull>(job, h, job.up + start * job.rank, kPanel, row * job.width + start, start, kWidth, target);
  }
  for (; start < job.width; start += kPanel) {
    const float* b = job.up + start * job.rank;
    const int64_t left = job.width - start, at = row * job.width + start;
    if (left >= kPanel) {
      up_tile<M, 2, kFull>(job, h, b, kPanel, at, start, kWidth, target);
      continue;
    }
    const int64_t b_step = round_up(left, kWidth);
    for (int64_t i = 0; i < left; i += kWidth) {
      if (left - i >= kWidth) {
        up_tile<M, 1, kFull>(job, h, b + i, b_step, at + i, start + i, kWidth, target);
      } else {
        up_tile<M, 1, kPart>(job, h, b + i, b_step, at + i, start + i, static_cast<int>(left - i), target);
      }
    }
  }
}

// All columns of one tile of rows.
template <typename T>
void up(const Job& job, const float* h, int64_t row, int rows, Target<T> target) {
  const int parts = (rows + kUpRows - 1) / kUpRows;  // of nearly equal size: a single row has too few sums
  for (int p = 0; p < parts; ++p) {
    const int done = rows * p / parts, part = rows * (p + 1) / parts - done;
    const Target<T> to{target.data + done * job.width, target.wide ? target.wide + done * job.width : nullptr};
    with_count<kUpRows>(part, [&](auto m) { up_rows<m.value>(job, h + done * job.rank, row + done, to); });
  }
}

constexpr int kMostTiles = 8;  // tiles in a block

// Rows [begin, end).
template <typename T>
void run_tokens(const Job& job, int64_t begin, int64_t end) {
  const bool norm = job.epilogue == Epilogue::kLayerNorm || job.epilogue == Epilogue::kRMSNorm;
  constexpr bool kNarrow = !std::is_same_v<T, float>;
  const int64_t width = job.width;
  const int64_t row_floats = job.rank + (kNarrow ? kDepth : 0) + (kNarrow && norm ? width : 0);
  // Rows are cut into tiles of nearly equal size, as many as fit in scratch into one block.
  const int64_t most = larger(1, smaller(kRows, kStackFloats / larger(1, row_floats)));
  const int64_t total = (end - begin + most - 1) / most;
  const int64_t block_tiles = larger(1, smaller(job.block_tiles, kStackFloats / larger(1, row_floats * most)));
  Scratch scratch(job, block_tiles * most * row_floats);
  float* const h = scratch.data;
  float* const x32 = h + block_tiles * most * job.rank;
  float* const wide = x32 + (kNarrow ? block_tiles * most * kDepth : 0);

  int64_t row = begin;
  for (int64_t done = 0; done < total;) {
    int tiles[kMostTiles];
    int count = 0;
    for (; count < block_tiles && done < total; ++count, ++done) {
      tiles[count] = static_cast<int>((end - begin) * (done + 1) / total - (end - begin) * done / total);
    }
    float* h_to = h;
    for (int p = 0; p < job.products; ++p) {
      down<T>(job, job.product[p], row, tiles, count, h_to, x32);
      h_to += job.product[p].rank;
    }
    const float* h_from = h;
    for (int t = 0; t < count; ++t) {
      T* y = static_cast<T*>(job.y) + row * width;
      T* sum = job.sum ? static_cast<T*>(job.sum) + row * width : nullptr;
      const Target<T> target{norm && sum ? sum : y, norm && kNarrow ? wide : nullptr};
      up(job, h_from, row, tiles[t], target);
      if (norm) {
        for (int m = 0; m < tiles[t]; ++m) {
          if constexpr (kNarrow) {
            normalise(job, wide + m * width, y + m * width, sum ? sum + m * width : nullptr);
          } else {
            normalise(job, (sum ? sum : y) + m * width, y + m * width, static_cast<T*>(nullptr));
          }
        }
      }
      row += tiles[t];
      h_from += tiles[t] * job.rank;
    }
  }
}

}  // namespace laurel::LAUREL_PATH
