// What happens to one vector of the residual once the low-rank part is summed up, and the norms.
#pragma once

#include <cmath>

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

LAUREL_INLINE Floats relu(Floats value) {
  auto negative = value < Floats{};
  return bit_cast<Floats>(~bit_cast<Words>(negative) & bit_cast<Words>(value));
}

template <Extent E>
LAUREL_INLINE Floats load_vector(const Vector& vector, int64_t at, int count) {
  // A scalar is repeated, so the whole vector may be read there.
  return vector.stride ? load_as<E>(vector.data + at, count) : load(vector.data);
}

// Normalises one row: y = scale * (row - mean) / deviation + offset, or scale * row / root mean square. The row may be
// y itself or, in 16-bit types, its float32 form; `sum` takes the row as it is if that is not where it lies already.
template <typename O, typename T>
void normalise(const Job& job, const O* row, T* y, T* sum) {
  const int64_t width = job.width;
  const int64_t whole = width / kWidth * kWidth;
  const int tail = static_cast<int>(width - whole);
  const bool centred = job.epilogue == Epilogue::kLayerNorm;
  float mean = 0;
  if (centred) {
    Floats even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * kWidth <= whole; i += 2 * kWidth) {
      even += load(row + i);
      odd += load(row + i + kWidth);
    }
    for (; i < whole; i += kWidth) even += load(row + i);
    if (tail) odd += load_part(row + whole, tail);
    mean = sum_lanes(even + odd) / static_cast<float>(width);
  }
  float squares = 0;
  {
    Floats even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * kWidth <= whole; i += 2 * kWidth) {
      Floats a = load(row + i) - mean, b = load(row + i + kWidth) - mean;
      even += a * a;
      odd += b * b;
    }
    for (; i < whole; i += kWidth) {
      Floats a = load(row + i) - mean;
      even += a * a;
    }
    squares = sum_lanes(even + odd);
    for (i = whole; i < width; ++i) {
      float a = to_float(row[i]) - mean;
      squares += a * a;
    }
  }
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + job.epsilon);
  auto step = [&](auto extent, int64_t i, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    Floats value = load_as<E>(row + i, count);
    if (sum) store_as<E>(sum + i, value, count);
    value = (value - mean) * factor * load_vector<E>(job.scale, i, count);
    if (centred) value += load_vector<E>(job.offset, i, count);
    store_as<E>(y + i, value, count);
  };
  for (int64_t i = 0; i < whole; i += kWidth) step(std::integral_constant<Extent, kFull>(), i, kWidth);
  if (tail) step(std::integral_constant<Extent, kPart>(), whole, tail);
}

}  // namespace laurel::LAUREL_PATH
