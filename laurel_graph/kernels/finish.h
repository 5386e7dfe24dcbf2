// What happens to one vector of the residual once the low-rank part is summed up, and the norms.
#pragma once

#include <cmath>
#include <type_traits>

#include "job.h"
#include "pack.h"
#include "simd.h"

namespace laurel::LAUREL_PATH {

// kFull loads and stores whole vectors, kPart the first `count` elements.
enum Extent { kFull, kPart };

template <Extent E, typename T>
LAUREL_INLINE Floats load_as(const T* from, int count) {
  return E == kFull ? load(from) : load_part(from, count);
}

template <Extent E, typename T>
LAUREL_INLINE void store_as(T* to, Floats value, int count) {
  E == kFull ? store(to, value) : store_part(to, value, count);
}

// Where a share of the job's features begins, or ends if it is the next one: at whole units, but for the last end.
inline int64_t share_begin(const Job& job, int64_t unit, int64_t share) {
  return share == job.parts ? job.width : job.width / unit * share / job.parts * unit;
}

// The sum of `parts` arrays of `count` floats, a whole number of vectors, that lie one after the other.
inline void sum_shares(const float* from, int64_t parts, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Floats sum = load(from + i);
    for (int64_t part = 1; part < parts; ++part) sum += load(from + part * count + i);
    store(to + i, sum);
  }
}

// Calls function(integral_constant n) for n in [1, Most].
template <int Most, typename Function>
LAUREL_INLINE void with_count(int n, Function function) {
  if constexpr (Most > 1) {
    if (n != Most) return with_count<Most - 1>(n, function);
  }
  function(std::integral_constant<int, Most>());
}

LAUREL_INLINE Floats relu(Floats value) {
  auto negative = value < Floats{};
  return bit_cast<Floats>(~bit_cast<Words>(negative) & bit_cast<Words>(value));
}

// Where up to kRepeat elements begin.
LAUREL_INLINE const float* from(const Vector& vector, int64_t at) { return vector.data + at * vector.stride; }

template <Extent E>
LAUREL_INLINE Floats load_vector(const Vector& vector, int64_t at, int count) {
  return load_as<E>(from(vector, at), count);
}

// The value itself, which the compiler does not see through: it would keep every sum with it in a register of its own.
template <typename V>
LAUREL_INLINE V opaque(V value) {
  asm("" : "+r"(value));
  return value;
}

// `bytes` behind a pointer.
template <typename T>
LAUREL_INLINE T* behind(T* from, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(from) + bytes);
}

// What the norm of a row needs, gathered while its vectors are in registers: a pivot near its values, and for each lane
// the sum and the sum of squares of what is left of them without the pivot. Without it the difference of two large
// numbers would be all that is left of a row that is nearly constant.
constexpr int kMoments = 3 * kWidth;  // floats: pivot, sums, sums of squares

// Adds M rows of V vectors, `count` elements in the last one if it is partial; `first` of their rows. Without Centred
// the squares alone.
template <int M, int V, Extent E, bool Centred>
void gather_moments(const Floats (&value)[M][V], int count, bool first, float* moments) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float* const row = moments + m * kMoments;
    if (first) {
      Floats pivot{};
      if (Centred) {
        // The mean of these elements differs from the row's by at most sqrt(width / elements) deviations.
        Floats all = E == kPart ? first_lanes(value[m][V - 1], count) : value[m][V - 1];
        for (int v = 0; v < V - 1; ++v) all += value[m][v];
        const int elements = E == kPart ? (V - 1) * kWidth + count : V * kWidth;
        pivot = splat(sum_lanes(all) / static_cast<float>(elements));
      }
      store(row, pivot);
      store(row + kWidth, Floats{});
      store(row + 2 * kWidth, Floats{});
    }
    const Floats pivot = Centred ? load(row) : Floats{};
    Floats sum = load(row + kWidth), squares = load(row + 2 * kWidth);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Floats left = Centred ? value[m][v] - pivot : value[m][v];
      if (E == kPart && v == V - 1) left = first_lanes(left, count);
      if (Centred) sum += left;
      squares += left * left;
    }
    if (Centred) store(row + kWidth, sum);
    store(row + 2 * kWidth, squares);
  }
}

// Normalises M rows: y = scale * (row - mean) / deviation + offset, or scale * row / root mean square. The rows may be
// y itself or, in 16-bit types, their float32 form; `sum` takes them as they are if that is not where they lie already.
template <int M, bool Centred, typename O, typename T>
void normalise_as(const Job& job, const float* moments, const O* rows, T* y, T* sum) {
  const int64_t width = job.width;
  // The mean in two parts: on a row that is nearly constant, their sum is too coarse.
  Floats pivot[M], rest[M], factor[M];
  for (int m = 0; m < M; ++m) {
    const float* const row = moments + m * kMoments;
    const float count = static_cast<float>(width);
    const float left = Centred ? sum_lanes(load(row + kWidth)) / count : 0.0f;
    const float variance = sum_lanes(load(row + 2 * kWidth)) / count - left * left;
    pivot[m] = splat(row[0]);
    rest[m] = splat(left);
    factor[m] = splat(1.0f / std::sqrt((variance < 0 ? 0 : variance) + job.epsilon));
  }
  auto step = [&](auto extent, int64_t i, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    const Floats scale = load_vector<E>(job.scale, i, count);
    const Floats offset = Centred ? load_vector<E>(job.offset, i, count) : Floats{};
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats value = load_as<E>(rows + m * width + i, count);
      if (sum) store_as<E>(sum + m * width + i, value, count);
      const Floats left = Centred ? value - pivot[m] - rest[m] : value;
      const Floats normal = left * (factor[m] * scale);
      store_as<E>(y + m * width + i, Centred ? normal + offset : normal, count);
    }
  };
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) step(std::integral_constant<Extent, kFull>(), i, kWidth);
  if (i < width) step(std::integral_constant<Extent, kPart>(), i, static_cast<int>(width - i));
}

template <int M, typename O, typename T>
void normalise(const Job& job, const float* moments, const O* rows, T* y, T* sum) {
  if (job.epilogue == Epilogue::kLayerNorm) return normalise_as<M, true>(job, moments, rows, y, sum);
  normalise_as<M, false>(job, moments, rows, y, sum);
}

}  // namespace laurel::LAUREL_PATH
