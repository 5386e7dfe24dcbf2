// Low-rank residuals over (rows, D, inner) arrays: channels in the middle, vectors run along `inner`.
//
// A task takes one block of positions of one row: H = A^T X for the block, kept in scratch, then Y from B^T, H, X and
// F in one sweep. Tiles are kGroup (of ranks or channels) x kSpan vectors of positions; what is left at the end of a
// block gets narrower tiles.
#pragma once

#include <type_traits>

#include "finish.h"
#include "scratch.h"

namespace laurel::LAUREL_PATH {

constexpr int kSpan = kRegisters == 32 ? 3 : kWidth == 8 ? 3 : 2;
constexpr int64_t kSpanPositions = kSpan * kWidth;
constexpr int64_t kChannelDepth = 256;  // channels whose part of a tile stays in the caches for all ranks

// Groups in a tile of V vectors: with one vector, a single small group has too few sums to hide the latency of
// multiply-adds.
template <int V>
constexpr int kGroups = V == 1 && kGroup < 8 ? 8 / kGroup : 1;

// N groups of rows of H: h[g] += sum over channels of a[c][g] x[c], V vectors, the last one of `count` elements. All
// lanes of h are written, and all rows of the groups.
template <int N, int V, Extent E, typename T>
void gather_tile(const T* x, int64_t x_step, const float* a, int64_t a_step, int64_t depth, float* h, int64_t h_step,
                 int count, bool add, float scale) {
  Floats sum[N * kGroup][V] = {};
  for (int64_t c = 0; c < depth; ++c) {
    Floats value[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const T* from = x + c * x_step + v * kWidth;
      value[v] = v == V - 1 ? load_as<E>(from, count) : load(from);
    }
#pragma GCC unroll 8
    for (int g = 0; g < N * kGroup; ++g) {
      Floats factor = splat(a[g / kGroup * a_step + c * kGroup + g % kGroup]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += factor * value[v];
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < N * kGroup; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      float* to = h + g * h_step + v * kWidth;
      Floats total = sum[g][v];
      if (add) total += load(to);
      store(to, total * scale);
    }
  }
}

// All ranks of a product for one tile's positions and `depth` channels from `channel` on; x and h are of the first
// position, x of that channel.
template <int V, Extent E, typename T>
void gather_span(const Job& job, const Product& product, const T* x, int64_t channel, int64_t depth, float* h,
                 int64_t h_step, int count) {
  constexpr int N = kGroups<V>;
  const int64_t a_step = job.width * kGroup;
  const float* const a = product.down + channel * kGroup;
  const float scale = channel + depth == job.width ? product.scale : 1.0f;
  int64_t j = 0;
  for (; j + (N - 1) * kGroup < product.rank; j += N * kGroup) {
    gather_tile<N, V, E>(x, job.inner, a + j * job.width, a_step, depth, h + j * h_step, h_step, count, channel > 0,
                         scale);
  }
  if (j < product.rank) {
    gather_tile<1, V, E>(x, job.inner, a + j * job.width, a_step, depth, h + j * h_step, h_step, count, channel > 0,
                         scale);
  }
}

// G channels of Y: part of a group, or whole ones.
template <int G, int V, Extent E, typename T>
void spread_tile(const Job& job, const float* h, int64_t h_step, int64_t at, int64_t channel, int count) {
  const int64_t inner = job.inner, rank = job.rank;
  const float* const b = job.up + channel / kGroup * kGroup * rank + channel % kGroup;
  Floats sum[G][V] = {};
  // Asks for f one tile of channels ahead: on large maps channels lie pages apart, where no hardware follows. One
  // channel for each rank, so that the requests spread over the multiply-adds.
  const T* const next_f = static_cast<const T*>(job.f) + at + G * inner;
  for (int64_t k = 0; k < rank; ++k) {
    for (int i = 0; k < G && i < V; ++i) __builtin_prefetch(next_f + k * inner + i * kWidth);
    Floats value[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) value[v] = load(h + k * h_step + v * kWidth);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      Floats factor = splat(b[(g / kGroup * rank + k) * kGroup + g % kGroup]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += factor * value[v];
    }
  }
  auto load_at = [&](const void* from, int g, int v) LAUREL_LAMBDA {
    const T* element = static_cast<const T*>(from) + at + g * inner + v * kWidth;
    return v == V - 1 ? load_as<E>(element, count) : load(element);
  };
  for (int j = 0; j < job.previous; ++j) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] += job.gamma[j] * load_at(job.previous_x[j], g, v);
    }
  }
  // All loads before all stores: see up_tile.
  const Floats least = job.epilogue == Epilogue::kRelu ? Floats{} : splat(-INFINITY);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    const Floats alpha = splat(job.alpha.data[(channel + g) * job.alpha.stride]);
    const Floats beta = splat(job.beta.data[(channel + g) * job.beta.stride]);
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      Floats value = alpha * load_at(job.f, g, v) + beta * (sum[g][v] + load_at(job.x, g, v));
      sum[g][v] = value < least ? least : value;
    }
  }
  T* y = static_cast<T*>(job.y) + at;
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      T* to = y + g * inner + v * kWidth;
      v == V - 1 ? store_as<E>(to, sum[g][v], count) : store(to, sum[g][v]);
    }
  }
}

// Calls function(integral_constant channels, first channel) for tiles of N groups, then of one, then single channels.
template <int N, typename Function>
LAUREL_INLINE void each_group(int64_t width, Function function) {
  int64_t c = 0;
  for (; c + N * kGroup <= width; c += N * kGroup) function(std::integral_constant<int, N * kGroup>(), c);
  for (; c + kGroup <= width; c += kGroup) function(std::integral_constant<int, kGroup>(), c);
  for (; c < width; ++c) function(std::integral_constant<int, 1>(), c);
}

// Calls function(integral_constant vectors, extent, elements in the last vector) for a tile of `left` positions.
template <int V, typename Function>
LAUREL_INLINE void with_span(int64_t left, Function function) {
  const int64_t count = left - (V - 1) * kWidth;
  if constexpr (V > 1) {
    if (count <= 0) return with_span<V - 1>(left, function);
  }
  if (count == kWidth) {
    function(std::integral_constant<int, V>(), std::integral_constant<Extent, kFull>(), kWidth);
  } else {
    function(std::integral_constant<int, V>(), std::integral_constant<Extent, kPart>(), static_cast<int>(count));
  }
}

// Positions [begin, end) of one row.
template <typename T>
void run_channels(const Job& job, int64_t row, int64_t begin, int64_t end) {
  const int64_t positions = end - begin, whole = positions / kSpanPositions * kSpanPositions;
  const int64_t h_step = round_up(positions, kWidth);
  const int64_t origin = row * job.width * job.inner + begin;
  Scratch scratch(job, h_step * (job.rank + kGroup - 1));  // the last group may have rows that nobody reads
  float* h = scratch.data;
  for (int p = 0; p < job.products; ++p) {
    const Product& product = job.product[p];
    for (int64_t c = 0; c < job.width; c += kChannelDepth) {
      const T* const x = static_cast<const T*>(product.source) + origin + c * job.inner;
      const int64_t depth = smaller(kChannelDepth, job.width - c);
      for (int64_t start = 0; start < whole; start += kSpanPositions) {
        gather_span<kSpan, kFull>(job, product, x + start, c, depth, h + start, h_step, kWidth);
      }
      if (whole == positions) continue;
      with_span<kSpan>(positions - whole, [&](auto vectors, auto extent, int count) LAUREL_LAMBDA {
        gather_span<vectors.value, extent.value>(job, product, x + whole, c, depth, h + whole, h_step, count);
      });
    }
    h += product.rank * h_step;
  }
  const float* const first = scratch.data;
  each_group<1>(job.width, [&](auto channels, int64_t c) LAUREL_LAMBDA {
    for (int64_t start = 0; start < whole; start += kSpanPositions) {
      spread_tile<channels.value, kSpan, kFull, T>(job, first + start, h_step, origin + c * job.inner + start, c,
                                                   kWidth);
    }
  });
  if (whole == positions) return;
  with_span<kSpan>(positions - whole, [&](auto vectors, auto extent, int count) LAUREL_LAMBDA {
    each_group<kGroups<vectors.value>>(job.width, [&](auto channels, int64_t c) LAUREL_LAMBDA {
      spread_tile<channels.value, vectors.value, extent.value, T>(job, first + whole, h_step,
                                                                  origin + c * job.inner + whole, c, count);
    });
  });
}

}  // namespace laurel::LAUREL_PATH
