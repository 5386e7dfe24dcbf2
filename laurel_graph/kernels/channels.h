// Low-rank residuals over (rows, D, inner) arrays: channels in the middle, vectors run along `inner`.
//
// A task takes one block of positions of one row: H = A^T X for the block, kept in scratch, then Y from B^T, H, X and
// F in one sweep. Tiles are kGroup (of ranks or channels) x kSpan vectors of positions.
#pragma once

#include <type_traits>

#include "finish.h"
#include "scratch.h"

namespace laurel::LAUREL_PATH {

constexpr int kSpan = kRegisters == 32 ? 3 : kWidth == 8 ? 3 : 2;
constexpr int64_t kChannelDepth = 256;

// kGroup rows of H: h[g] += sum over channels of a[c][g] x[c], V vectors, the last one of `count` elements. All lanes
// of h are written.
template <int V, Extent E, typename T>
void gather_tile(const T* x, int64_t x_step, const float* a, int64_t depth, float* h, int64_t h_step, int rows,
                 int count, bool add, float scale) {
  Floats sum[kGroup][V] = {};
  for (int64_t c = 0; c < depth; ++c) {
    Floats value[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const T* from = x + c * x_step + v * kWidth;
      value[v] = v == V - 1 ? load_as<E>(from, count) : load(from);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroup; ++g) {
      Floats factor = splat(a[c * kGroup + g]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += factor * value[v];
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kGroup; ++g) {
    if (g >= rows) break;
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      float* to = h + g * h_step + v * kWidth;
      Floats total = sum[g][v];
      if (add) total += load(to);
      store(to, total * scale);
    }
  }
}

// kGroup channels of Y, of which `rows` exist.
template <int V, Extent E, typename T>
void spread_tile(const Job& job, const float* h, int64_t h_step, const float* b, int64_t at, int64_t channel,
                 int rows, int count) {
  Floats sum[kGroup][V] = {};
  // Asks for f one group of channels ahead: on large maps channels lie pages apart, where no hardware follows. One
  // channel for each rank, so that the requests spread over the multiply-adds.
  const T* const next_f = static_cast<const T*>(job.f) + at + kGroup * job.inner;
  for (int64_t k = 0; k < job.rank; ++k) {
    for (int i = 0; k < kGroup && i < V; ++i) __builtin_prefetch(next_f + k * job.inner + i * kWidth);
    Floats value[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) value[v] = load(h + k * h_step + v * kWidth);
#pragma GCC unroll 8
    for (int g = 0; g < kGroup; ++g) {
      Floats factor = splat(b[k * kGroup + g]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += factor * value[v];
    }
  }
  const bool relu_after = job.epilogue == Epilogue::kRelu;
  const int64_t inner = job.inner;
  auto load_at = [&](const void* from, int g, int v) LAUREL_LAMBDA {
    const T* element = static_cast<const T*>(from) + at + g * inner + v * kWidth;
    return v == V - 1 ? load_as<E>(element, count) : load(element);
  };
  for (int j = 0; j < job.previous; ++j) {
#pragma GCC unroll 8
    for (int g = 0; g < kGroup; ++g) {
      if (g >= rows) break;
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += job.gamma[j] * load_at(job.previous_x[j], g, v);
    }
  }
  // All loads before all stores: see up_tile.
#pragma GCC unroll 8
  for (int g = 0; g < kGroup; ++g) {
    if (g >= rows) break;
    const Floats alpha = splat(job.alpha.data[(channel + g) * job.alpha.stride]);
    const Floats beta = splat(job.beta.data[(channel + g) * job.beta.stride]);
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      Floats value = alpha * load_at(job.f, g, v) + beta * (sum[g][v] + load_at(job.x, g, v));
      sum[g][v] = relu_after ? relu(value) : value;
    }
  }
  T* y = static_cast<T*>(job.y) + at;
#pragma GCC unroll 8
  for (int g = 0; g < kGroup; ++g) {
    if (g >= rows) break;
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      T* to = y + g * inner + v * kWidth;
      v == V - 1 ? store_as<E>(to, sum[g][v], count) : store(to, sum[g][v]);
    }
  }
}

template <int V, typename Function>
LAUREL_INLINE void with_span(int vectors, int64_t start, int64_t left, Function function) {
  if constexpr (V > 1) {
    if (vectors < V) return with_span<V - 1>(vectors, start, left, function);
  }
  const int64_t count = left - (V - 1) * kWidth;
  if (count >= kWidth) {
    function(std::integral_constant<int, V>(), std::integral_constant<Extent, kFull>(), start, kWidth);
  } else {
    function(std::integral_constant<int, V>(), std::integral_constant<Extent, kPart>(), start,
             static_cast<int>(count));
  }
}

// Calls function(vectors, extent, first position, elements in the last vector) for the tiles of [0, positions), which
// get nearly equal numbers of vectors: a narrow tile has too few sums to keep the units for multiply-adds busy.
template <typename Function>
LAUREL_INLINE void each_span(int64_t positions, Function function) {
  const int64_t vectors = (positions + kWidth - 1) / kWidth, tiles = (vectors + kSpan - 1) / kSpan;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = vectors * t / tiles, last = vectors * (t + 1) / tiles;
    with_span<kSpan>(static_cast<int>(last - first), first * kWidth, positions - first * kWidth, function);
  }
}

// Positions [begin, end) of one row.
template <typename T>
void run_channels(const Job& job, int64_t row, int64_t begin, int64_t end) {
  const int64_t positions = end - begin;
  const int64_t h_step = round_up(positions, kWidth);
  const int64_t origin = row * job.width * job.inner + begin;
  Scratch scratch(job, h_step * job.rank);
  float* h = scratch.data;
  for (int p = 0; p < job.products; ++p) {
    const Product& product = job.product[p];
    const T* x = static_cast<const T*>(product.source) + origin;
    for (int64_t c = 0; c < job.width; c += kChannelDepth) {
      const int64_t depth = smaller(kChannelDepth, job.width - c);
      const float scale = c + depth == job.width ? product.scale : 1.0f;
      for (int64_t j = 0; j < product.rank; j += kGroup) {
        const float* a = product.down + j * job.width + c * kGroup;
        const int rows = static_cast<int>(smaller(kGroup, product.rank - j));
        each_span(positions, [&](auto vectors, auto extent, int64_t start, int count) {
          gather_tile<vectors.value, extent.value, T>(x + c * job.inner + start, job.inner, a, depth,
                                                      h + j * h_step + start, h_step, rows, count, c > 0, scale);
        });
      }
    }
    h += product.rank * h_step;
  }
  for (int64_t c = 0; c < job.width; c += kGroup) {
    const int rows = static_cast<int>(smaller(kGroup, job.width - c));
    each_span(positions, [&](auto vectors, auto extent, int64_t start, int count) {
      spread_tile<vectors.value, extent.value, T>(job, scratch.data + start, h_step, job.up + c * job.rank,
                                                  origin + c * job.inner + start, c, rows, count);
    });
  }
}

}  // namespace laurel::LAUREL_PATH
