// Residuals without a low-rank part or a norm: one pass over memory, nothing kept.
#pragma once

#include "finish.h"

namespace laurel::LAUREL_PATH {

// Elements [begin, end) of the arrays, whose alpha, beta and bias start at element `channel` of theirs (stride 1) or
// do not move (stride 0).
template <typename T>
void combine_span(const Job& job, int64_t begin, int64_t end, const Vector& alpha, const Vector& beta,
                  const Vector& bias) {
  T* y = static_cast<T*>(job.y);
  const bool relu_after = job.epilogue == Epilogue::kRelu;
  auto step = [&](auto extent, int64_t at, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    const int64_t i = at - begin;
    Floats value = combine<E, T>(job, at, count, Floats{}, load_vector<E>(alpha, i, count),
                                 load_vector<E>(beta, i, count), load_vector<E>(bias, i, count));
    if (relu_after) value = relu(value);
    store_as<E>(y + at, value, count);
  };
  int64_t at = begin;
  for (; at + kWidth <= end; at += kWidth) step(std::integral_constant<Extent, kFull>(), at, kWidth);
  if (at < end) step(std::integral_constant<Extent, kPart>(), at, static_cast<int>(end - at));
}

inline Vector from(const Vector& vector, int64_t at) { return {vector.data + at * vector.stride, vector.stride}; }

// Tokens: elements [begin, end) of all; alpha, beta and bias run along each row.
template <typename T>
void elementwise_tokens(const Job& job, int64_t begin, int64_t end) {
  if (!job.alpha.stride && !job.beta.stride && !job.bias.stride) {
    return combine_span<T>(job, begin, end, job.alpha, job.beta, job.bias);
  }
  while (begin < end) {
    const int64_t column = begin % job.width;
    const int64_t stop = smaller(end, begin - column + job.width);
    combine_span<T>(job, begin, stop, from(job.alpha, column), from(job.beta, column), from(job.bias, column));
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
