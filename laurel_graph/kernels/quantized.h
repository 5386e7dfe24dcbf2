// Low-rank residuals over (rows, D) arrays of bytes, as quantised models have them: a few rows at a time become float32
// in scratch that stays in the cache, so that memory sees bytes alone.
#pragma once

#include <limits>

#include "tokens.h"

namespace laurel::LAUREL_PATH {

constexpr int64_t kByteBlock = 12 * 1024;  // elements of x that are float32 at a time, if not less than a tile of rows

// What DequantizeLinear computes.
template <typename B>
void dequantize(const B* from, int64_t count, Quantizer quantizer, float* to) {
  const Floats zero = splat(static_cast<float>(quantizer.zero)), scale = splat(quantizer.scale);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, (load_bytes(from + i) - zero) * scale);
  if (i == count) return;
  B part[kWidth] = {};
  std::memcpy(part, from + i, static_cast<size_t>(count - i));
  store_part(to + i, (load_bytes(part) - zero) * scale, static_cast<int>(count - i));
}

// What QuantizeLinear computes, of max(value, 0) with `relu`: round half to even, then saturate.
template <typename B>
void quantize(const float* from, int64_t count, Quantizer quantizer, bool relu, B* to) {
  const float least = static_cast<float>(std::numeric_limits<B>::min() - quantizer.zero);
  const Floats low = splat(relu && least < 0 ? 0.0f : least), scale = splat(quantizer.scale);
  const Floats high = splat(static_cast<float>(std::numeric_limits<B>::max() - quantizer.zero));
  auto step = [&](Floats value, B* at) LAUREL_LAMBDA {
    value /= scale;
    value = value < low ? low : value;
    value = value > high ? high : value;
    store_bytes(at, round_to_ints(value) + quantizer.zero);
  };
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) step(load(from + i), to + i);
  if (i == count) return;
  B part[kWidth];
  step(load_part(from + i, static_cast<int>(count - i)), part);
  std::memcpy(to + i, part, static_cast<size_t>(count - i));
}

// Rows [begin, end).
template <typename B>
void run_quantized(const Job& job, int64_t begin, int64_t end) {
  const int64_t width = job.width;
  const int64_t most = smaller(end - begin, larger(kRows, kByteBlock / larger(1, width)));
  Scratch scratch(job, 2 * most * width);
  float* const x = scratch.data;
  float* const f = x + most * width;
  Job block = job;
  block.x = block.product[0].source = x;
  block.f = block.y = f;
  block.streams = false;
  for (int64_t row = begin; row < end; row += most) {
    const int64_t rows = smaller(most, end - row), at = row * width, count = rows * width;
    dequantize(static_cast<const B*>(job.x) + at, count, job.quantizers[0], x);
    dequantize(static_cast<const B*>(job.f) + at, count, job.quantizers[1], f);
    block.rows = rows;
    run_tokens<float>(block, 0, rows);
    quantize(f, count, job.quantizers[2], job.epilogue == Epilogue::kRelu, static_cast<B*>(job.y) + at);
  }
}

}  // namespace laurel::LAUREL_PATH
