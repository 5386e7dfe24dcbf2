// Residuals without a low-rank part or a norm: one pass over memory, nothing kept.
#pragma once

#include "finish.h"

namespace laurel::LAUREL_PATH {

// Elements [begin, end) of the arrays. alpha, beta and bias go along with them from their first element on (stride 1),
// or are the same for all of them (stride 0).
template <typename T>
void combine_span(const Job& job, int64_t begin, int64_t end, const Vector& alpha, const Vector& beta,
                  const Vector& bias) {
  const T* const x = static_cast<const T*>(job.x);
  const T* const f = static_cast<const T*>(job.f);
  T* const y = static_cast<T*>(job.y);
  const bool relu_after = job.epilogue == Epilogue::kRelu;
  int64_t at = begin;
  if (!alpha.stride && !beta.stride && !job.biased && !job.previous) {
    // All loads of a step before its stores: see up_tile.
    const Floats a = load(alpha.data), b = load(beta.data);
    const Floats least = relu_after ? Floats{} : splat(-INFINITY);
    for (; at + 4 * kWidth <= end; at += 4 * kWidth) {
      Floats value[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        value[v] = a * load(f + at + v * kWidth) + b * load(x + at + v * kWidth);
        value[v] = value[v] < least ? least : value[v];
      }
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) store(y + at + v * kWidth, value[v]);
    }
  }
  auto step = [&](auto extent, int64_t start, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    const int64_t i = start - begin;
    Floats carried = load_as<E>(x + start, count);
    for (int j = 0; j < job.previous; ++j) {
      carried += job.gamma[j] * load_as<E>(static_cast<const T*>(job.previous_x[j]) + start, count);
    }
    Floats branch = load_as<E>(f + start, count);
    if (job.biased) branch += load_vector<E>(bias, i, count);
    Floats value = load_vector<E>(alpha, i, count) * branch + load_vector<E>(beta, i, count) * carried;
    if (relu_after) value = relu(value);
    store_as<E>(y + start, value, count);
  };
  for (; at + kWidth <= end; at += kWidth) step(std::integral_constant<Extent, kFull>(), at, kWidth);
  if (at < end) step(std::integral_constant<Extent, kPart>(), at, static_cast<int>(end - at));
}

inline Vector rest(const Vector& vector, int64_t at) { return {from(vector, at), vector.stride}; }

// Tokens: elements [begin, end) of all; alpha, beta and bias run along each row.
template <typename T>
void elementwise_tokens(const Job& job, int64_t begin, int64_t end) {
  if (!job.alpha.stride && !job.beta.stride && !job.bias.stride) {
    return combine_span<T>(job, begin, end, job.alpha, job.beta, job.bias);
  }
  while (begin < end) {
    const int64_t column = begin % job.width;
    const int64_t stop = smaller(end, begin - column + job.width);
    combine_span<T>(job, begin, stop, rest(job.alpha, column), rest(job.beta, column), rest(job.bias, column));
    begin = stop;
  }
}

// Channels: elements [begin, end) of all; alpha and beta are constant within one (row, channel).
template <typename T>
void elementwise_channels(const Job& job, int64_t begin, int64_t end) {
  if (!job.alpha.stride && !job.beta.stride) {
    return combine_span<T>(job, begin, end, job.alpha, job.beta, job.bias);
  }
  while (begin < end) {
    const int64_t plane = begin / job.inner;
    const int64_t channel = plane % job.width;
    const int64_t stop = smaller(end, (plane + 1) * job.inner);
    Floats alpha = splat(job.alpha.data[channel * job.alpha.stride]);
    Floats beta = splat(job.beta.data[channel * job.beta.stride]);
    float repeated[2][kWidth];
    store(repeated[0], alpha);
    store(repeated[1], beta);
    combine_span<T>(job, begin, stop, {repeated[0], 0}, {repeated[1], 0}, job.bias);
    begin = stop;
  }
}

}  // namespace laurel::LAUREL_PATH
