// Low-rank residuals over (rows, D, inner) arrays: channels in the middle, vectors run along `inner`.
//
// A task takes one block of positions of one row: H = A^T X for the block, kept in scratch, then Y from B^T, H, X and
// F in one sweep. Few short rows are shared out by channels instead, in two phases, so that each task has memory of its
// own in one piece. Tiles are kGroup (of ranks or channels) x kSpan vectors of positions; what is left at the end of a
// block gets narrower tiles.
#pragma once

#include <type_traits>

#include "finish.h"
#include "scratch.h"

namespace laurel::LAUREL_PATH {

constexpr int kSpan = kRegisters == 32 ? 3 : kWidth == 8 ? 3 : 2;
constexpr int64_t kSpanPositions = kSpan * kWidth;
constexpr int64_t kChannelDepth = 256;  // channels whose part of a tile stays in the caches for all ranks
constexpr int64_t kShareUnit = 16;      // channels; shares of a row begin at multiples of it

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
                 int64_t h_step, int count, bool add, float scale) {
  constexpr int N = kGroups<V>;
  const int64_t a_step = job.width * kGroup;
  const float* const a = product.down + channel * kGroup;
  int64_t j = 0;
  for (; j + (N - 1) * kGroup < product.rank; j += N * kGroup) {
    gather_tile<N, V, E>(x, job.inner, a + j * job.width, a_step, depth, h + j * h_step, h_step, count, add, scale);
  }
  if (j < product.rank) {
    gather_tile<1, V, E>(x, job.inner, a + j * job.width, a_step, depth, h + j * h_step, h_step, count, add, scale);
  }
}

// G channels of Y: part of a group, or whole ones.
template <int G, int V, Extent E, typename T>
void spread_tile(const Job& job, const float* h, int64_t h_step, int64_t at, int64_t channel, int count) {
  const int64_t inner = job.inner, rank = job.rank;
  const float* const b = job.up + channel / kGroup * kGroup * rank + channel % kGroup;
  Floats sum[G][V] = {};
  // Asks for f and y one tile of channels ahead: on large maps channels lie pages apart, where no hardware follows. One
  // channel for each rank, so that the requests spread over the multiply-adds.
  const T* const next_f = static_cast<const T*>(job.f) + at + G * inner;
  const T* const next_y = static_cast<const T*>(job.y) + at + G * inner;
  for (int64_t k = 0; k < rank; ++k) {
    for (int i = 0; k < G && i < V; ++i) {
      __builtin_prefetch(next_f + k * inner + i * kWidth);
      __builtin_prefetch(next_y + k * inner + i * kWidth);
    }
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
  if (job.beta.stride) {  // see fold_beta
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) sum[g][v] *= *from(job.beta, channel + g);
    }
  }
  // All loads before all stores: see up_tile.
  const Floats least = job.epilogue == Epilogue::kRelu ? Floats{} : splat(-INFINITY);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    const Floats alpha = splat(*from(job.alpha, channel + g)), beta = splat(*from(job.beta, channel + g));
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      Floats value = alpha * load_at(job.f, g, v) + (beta * load_at(job.x, g, v) + sum[g][v]);
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

// A few positions that are left at the end of a row, in float32: lanes run along ranks and channels instead, of which
// there are always enough for whole vectors.
typedef float Group __attribute__((vector_size(kGroup * 4)));
constexpr int kFew = kGroup / 4;

LAUREL_INLINE Group load_group(const float* from) { return load_bits<Group>(from); }

// A group of ranks at L positions: h[g][l] += sum over channels of a[c][g] x[c][l].
template <int L>
void gather_few(const float* x, int64_t x_step, const float* a, int64_t depth, float* h, int64_t h_step, bool add,
                float scale) {
  constexpr int kChains = 8 / L;
  Group sum[kChains][L] = {};
  int64_t c = 0;
  for (; c + kChains <= depth; c += kChains) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains; ++i) {
      const Group factor = load_group(a + (c + i) * kGroup);
#pragma GCC unroll 4
      for (int l = 0; l < L; ++l) sum[i][l] += factor * x[(c + i) * x_step + l];
    }
  }
  for (; c < depth; ++c) {
    for (int l = 0; l < L; ++l) sum[0][l] += load_group(a + c * kGroup) * x[c * x_step + l];
  }
#pragma GCC unroll 4
  for (int l = 0; l < L; ++l) {
    for (int i = 1; i < kChains; ++i) sum[0][l] += sum[i][l];
    for (int g = 0; g < kGroup; ++g) {
      float* const to = h + g * h_step + l;
      *to = (sum[0][l][g] + (add ? *to : 0.0f)) * scale;
    }
  }
}

// A group of channels of Y at L positions.
template <int L>
void spread_few(const Job& job, const float* h, int64_t h_step, int64_t at, int64_t channel) {
  const float* const b = job.up + channel * job.rank;
  Group sum[L] = {};
  for (int64_t k = 0; k < job.rank; ++k) {
    const Group factor = load_group(b + k * kGroup);
#pragma GCC unroll 4
    for (int l = 0; l < L; ++l) sum[l] += factor * h[k * h_step + l];
  }
  auto element = [at](const void* from, int64_t i) { return static_cast<const float*>(from)[at + i]; };
  float* const y = static_cast<float*>(job.y) + at;
#pragma GCC unroll 8
  for (int g = 0; g < kGroup; ++g) {
    const float alpha = *from(job.alpha, channel + g), beta = *from(job.beta, channel + g);
    const float kept = job.beta.stride ? beta : 1.0f;  // see fold_beta
    for (int l = 0; l < L; ++l) {
      const int64_t i = g * job.inner + l;
      float carried = sum[l][g];
      for (int j = 0; j < job.previous; ++j) carried += job.gamma[j] * element(job.previous_x[j], i);
      const float value = alpha * element(job.f, i) + (beta * element(job.x, i) + kept * carried);
      y[i] = job.epilogue == Epilogue::kRelu && value < 0 ? 0.0f : value;
    }
  }
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

// Part of one row: positions [begin, end) of channels [channel, stop).
struct Patch {
  int64_t row, begin, end, channel, stop;

  int64_t positions() const { return end - begin; }
  int64_t whole() const { return positions() / kSpanPositions * kSpanPositions; }  // in tiles of full width
  bool few() const { return positions() - whole() <= kFew; }  // left when the whole tiles are done
  int64_t h_step() const { return round_up(positions(), kWidth); }
  int64_t origin(const Job& job) const { return (row * job.width + channel) * job.inner + begin; }
};

// Rows of H for all products; the last group of each product may have rows that nobody reads.
LAUREL_INLINE int64_t gathered_rows(const Job& job) { return job.rank + kGroup - 1; }

// H = A^T X over the patch's channels, gathered_rows() x h_step.
template <typename T>
void gather(const Job& job, const Patch& patch, float* h) {
  const int64_t whole = patch.whole(), h_step = patch.h_step();
  for (int p = 0; p < job.products; ++p) {
    const Product& product = job.product[p];
    for (int64_t c = patch.channel; c < patch.stop; c += kChannelDepth) {
      const T* const x = static_cast<const T*>(product.source) + patch.origin(job) + (c - patch.channel) * job.inner;
      const int64_t depth = smaller(kChannelDepth, patch.stop - c);
      const bool add = c > patch.channel;
      const float scale = c + depth == patch.stop ? product.scale : 1.0f;
      for (int64_t start = 0; start < whole; start += kSpanPositions) {
        gather_span<kSpan, kFull>(job, product, x + start, c, depth, h + start, h_step, kWidth, add, scale);
      }
      if (whole == patch.positions()) continue;
      if constexpr (std::is_same_v<T, float>) {
        if (patch.few()) {
          with_count<kFew>(static_cast<int>(patch.positions() - whole), [&](auto positions) LAUREL_LAMBDA {
            for (int64_t j = 0; j < product.rank; j += kGroup) {
              gather_few<positions.value>(x + whole, job.inner, product.down + j * job.width + c * kGroup, depth,
                                          h + j * h_step + whole, h_step, add, scale);
            }
          });
          continue;
        }
      }
      with_span<kSpan>(patch.positions() - whole, [&](auto vectors, auto extent, int count) LAUREL_LAMBDA {
        gather_span<vectors.value, extent.value>(job, product, x + whole, c, depth, h + whole, h_step, count, add,
                                                 scale);
      });
    }
    h += product.rank * h_step;
  }
}

// Y for G channels and one tile of positions, in tiles of whole groups; a narrow tile takes several groups at once.
template <int G, int V, Extent E, typename T>
LAUREL_INLINE void spread_tiles(const Job& job, const float* h, int64_t h_step, int64_t at, int64_t channel,
                                int count) {
  constexpr int kStep = V > 1 && G > kGroup ? kGroup : G;
#pragma GCC unroll 2
  for (int g = 0; g < G; g += kStep) {
    spread_tile<kStep, V, E, T>(job, h, h_step, at + g * job.inner, channel + g, count);
  }
}

// Y for G channels from `channel` on and all positions of the patch.
template <int G, typename T>
void spread_channels(const Job& job, const Patch& patch, int64_t channel, const float* h) {
  const int64_t whole = patch.whole(), h_step = patch.h_step();
  const int64_t at = patch.origin(job) + (channel - patch.channel) * job.inner;
  for (int64_t start = 0; start < whole; start += kSpanPositions) {
    spread_tiles<G, kSpan, kFull, T>(job, h + start, h_step, at + start, channel, kWidth);
  }
  if (whole == patch.positions()) return;
  if constexpr (std::is_same_v<T, float> && G % kGroup == 0) {
    if (patch.few()) {
      return with_count<kFew>(static_cast<int>(patch.positions() - whole), [&](auto positions) LAUREL_LAMBDA {
        for (int g = 0; g < G; g += kGroup) {
          spread_few<positions.value>(job, h + whole, h_step, at + g * job.inner + whole, channel + g);
        }
      });
    }
  }
  with_span<kSpan>(patch.positions() - whole, [&](auto vectors, auto extent, int count) LAUREL_LAMBDA {
    spread_tiles<G, vectors.value, extent.value, T>(job, h + whole, h_step, at + whole, channel, count);
  });
}

// Y for the patch, whose first channel begins a group.
template <typename T>
void spread(const Job& job, const Patch& patch, const float* h) {
  constexpr int kMost = kGroups<1> * kGroup;
  int64_t c = patch.channel;
  for (; c + kMost <= patch.stop; c += kMost) spread_channels<kMost, T>(job, patch, c, h);
  for (; c + kGroup <= patch.stop; c += kGroup) spread_channels<kGroup, T>(job, patch, c, h);
  for (; c < patch.stop; ++c) spread_channels<1, T>(job, patch, c, h);
}

// Positions [begin, end) of one row.
template <typename T>
void run_positions(const Job& job, int64_t row, int64_t begin, int64_t end) {
  const Patch patch{row, begin, end, 0, job.width};
  Scratch scratch(job, patch.h_step() * gathered_rows(job));
  gather<T>(job, patch, scratch.data);
  spread<T>(job, patch, scratch.data);
}

// One share of the channels of one row, in the job's first phase its part of H, then Y from the sum of all parts.
template <typename T>
void run_share(const Job& job, int64_t row, int64_t share) {
  const int64_t begin = share_begin(job, kShareUnit, share), end = share_begin(job, kShareUnit, share + 1);
  const Patch patch{row, 0, job.inner, begin, end};
  const int64_t size = patch.h_step() * gathered_rows(job);
  float* const shares = job.shared + row * job.parts * size;
  if (job.phase == 0) return gather<T>(job, patch, shares + share * size);
  Scratch scratch(job, size);
  sum_shares(shares, job.parts, size, scratch.data);
  spread<T>(job, patch, scratch.data);
}

}  // namespace laurel::LAUREL_PATH
