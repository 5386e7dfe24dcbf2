// The backward pass of a Sum. Of a block that stays in the cache: G and the values come in line by line, which gives
// the gradients of the scales and of values without low-rank products; then P = G U^T, and from it and H the rest.
#pragma once

#include "product.h"
#include "sum_plan.h"

namespace laurel::LAUREL_PATH {

// Calls function(extent, first element, elements) for the vectors of a line.
template <typename Function>
LAUREL_INLINE void each_vector(int64_t length, Function function) {
  int64_t i = 0;
  for (; i + kWidth <= length; i += kWidth) function(std::integral_constant<Extent, kFull>(), i, kWidth);
  if (i < length) function(std::integral_constant<Extent, kPart>(), i, static_cast<int>(length - i));
}

// Lines of channels lie pages apart: while one is read, the same part of the next one, `ahead` elements further, is
// asked for.

// A gradient passes a relu where its result is not zero; a NaN lets it pass, as in torch.
inline void mask_line(const float* grad, const float* y, int64_t length, int64_t ahead, float* g) {
  each_vector(length, [&](auto extent, int64_t i, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    __builtin_prefetch(y + i + ahead);
    __builtin_prefetch(grad + i + ahead);
    const auto blocked = load_as<E>(y + i, count) <= Floats{};
    store_as<E>(g + i, bit_cast<Floats>(~bit_cast<Words>(blocked) & bit_cast<Words>(load_as<E>(grad + i, count))),
                count);
  });
}

inline void copy_line(const float* grad, int64_t length, float* g) {
  each_vector(length, [&](auto extent, int64_t i, int count) LAUREL_LAMBDA {
    store_as<extent.value>(g + i, load_as<extent.value>(grad + i, count), count);
  });
}

// One term's part of a line: the sum of g * value, added to dots[lane] or returned, and out = scale * g.
template <bool kDot, bool kWrite, bool kLanes>
float term_line(const float* g, const float* value, const float* scale, int64_t length, int64_t ahead, float* dots,
                float* out) {
  Floats sum{};
  each_vector(length, [&](auto extent, int64_t i, int count) LAUREL_LAMBDA {
    constexpr Extent E = extent.value;
    if (kDot) __builtin_prefetch(value + i + ahead);
    if (kWrite) __builtin_prefetch(out + i + ahead, 1);
    const Floats part = load_as<E>(g + i, count);
    if (kDot && kLanes) store(dots + i, load(dots + i) + part * load_as<E>(value + i, count));
    if (kDot && !kLanes) sum += part * load_as<E>(value + i, count);
    if (kWrite) store_as<E>(out + i, part * (kLanes ? load(scale + i) : splat(*scale)), count);
  });
  return kDot && !kLanes ? sum_lanes(sum) : 0.0f;
}

// What the backward pass of a block works on.
struct Backward {
  const Sum& sum;
  const SumPlan plan;
  const SumShared shared;
  const SumOwn own;

  Backward(const Sum& sum, const float* shared_data, float* own_data)
      : sum(sum), plan(sum), shared(sum, plan, const_cast<float*>(shared_data)), own(sum, plan, own_data) {}

  bool has_product(int64_t value) const {
    for (int64_t p = 0; p < sum.products; ++p) {
      if (sum.sources[p] == value) return true;
    }
    return false;
  }

  template <bool kLanes>
  void line_of_term(const Block& block, int64_t i, int64_t line, const float* g) const {
    const bool dot = sum.of_scales[i] != nullptr, write = sum.of_value[i] && !has_product(i);
    const int64_t at = block.origin + line * block.step;
    const float* const scale = shared.scales + i * plan.lanes + (kLanes ? 0 : line);
    float* const dots = kLanes ? own.dots + i * plan.lanes : nullptr;
    float* const out = write ? sum.of_value[i] + at : nullptr;
    float result = 0;
    if (dot && write) {
      result = term_line<true, true, kLanes>(g, sum.value[i] + at, scale, block.length, block.step, dots, out);
    } else if (dot) {
      result = term_line<true, false, kLanes>(g, sum.value[i] + at, scale, block.length, block.step, dots, out);
    } else if (write) {
      term_line<false, true, kLanes>(g, nullptr, scale, block.length, block.step, dots, out);
    }
    if (dot && !kLanes) own.of_scales[i * plan.lanes + line] += result;
  }

  template <bool kLanes>
  void take_in(const Block& block) const {
    for (int64_t line = 0; line < block.lines; ++line) {
      const int64_t at = block.origin + line * block.step;
      const float* g = sum.grad + at;
      if (plan.packs) {
        float* const to = own.g + line * plan.g_step;
        sum.relu ? mask_line(g, sum.y + at, block.length, block.step, to) : copy_line(g, block.length, to);
        g = to;
      }
      for (int64_t i = 0; i < sum.terms; ++i) line_of_term<kLanes>(block, i, line, g);
    }
    if (!kLanes) return;
    // A sum of sums of blocks: one long sum would lose bits.
    for (int64_t i = 0; i < sum.terms * plan.lanes; ++i) {
      own.of_scales[i] += own.dots[i];
      own.dots[i] = 0;
    }
  }

  // The gradients of U and of every A. Along is the order of (count, width) arrays, Across of their transposes.
  template <Order Along, Order Across>
  void gather(const Block& block, const float* g, int64_t g_step) const {
    narrow_product<Along>(g, g_step, block.count, sum.width, shared.up_narrow, plan.padded, plan.padded, own.hidden,
                          plan.padded, false);
    if (sum.of_up) {
      narrow_product<Across>(g, g_step, sum.width, block.count, sum.hidden + block.hidden, plan.padded, plan.padded,
                             own.of_up, plan.padded, true);
    }
    int64_t column = 0;
    for (int64_t p = 0; p < sum.products; ++p) {
      const int64_t ranks = round_up(sum.ranks[p], kWidth);
      if (sum.of_down[p]) {
        narrow_product<Across>(sum.value[sum.sources[p]] + block.origin, block.step, sum.width, block.count,
                               own.hidden + column, plan.padded, ranks, own.of_down + column, plan.padded, true);
      }
      column += ranks;
    }
  }

  // The gradient of a value that enters products: scale * G + sum of P A^T.
  void spread(const Block& block, int64_t value, const float* g) const {
    Factors factors[kMaxTerms];
    int64_t count = 0, first = 0, column = 0;
    for (int64_t p = 0; p < sum.products; ++p) {
      const int64_t rank = sum.ranks[p];
      if (sum.sources[p] == value) {
        factors[count++] =
            plan.channels
                ? Factors{sum.down[p], rank, own.turned + first * own.turned_step, own.turned_step, rank}
                : Factors{own.hidden + column, plan.padded, shared.down_wide + first * plan.lanes, plan.lanes, rank};
      }
      first += rank;
      column += round_up(rank, kWidth);
    }
    const bool term = value < sum.terms;
    const Addend addend{g, term ? shared.scales + value * plan.lanes : nullptr};
    const int64_t g_step = plan.packs ? plan.g_step : block.step;
    const Wide job{factors, count, &addend, term, g_step, sum.of_value[value] + block.origin, block.step, false};
    plan.channels ? wide_product<false>(job, block.lines, block.length)
                  : wide_product<true>(job, block.lines, block.length);
  }

  void turn(const Block& block) const {
    int64_t first = 0, column = 0;
    for (int64_t p = 0; p < sum.products; ++p) {
      transpose(own.hidden + column, plan.padded, block.count, sum.ranks[p], own.turned + first * own.turned_step,
                own.turned_step);
      first += sum.ranks[p];
      column += round_up(sum.ranks[p], kWidth);
    }
  }

  void run(const Block& block) const {
    plan.channels ? take_in<false>(block) : take_in<true>(block);
    const float* const g = plan.packs ? own.g : sum.grad + block.origin;
    const int64_t g_step = plan.packs ? plan.g_step : block.step;
    if (sum.products) {
      plan.channels ? gather<kRowsTouch, kDepthTouches>(block, g, g_step)
                    : gather<kDepthTouches, kRowsTouch>(block, g, g_step);
      if (plan.channels) turn(block);
    }
    for (int64_t i = 0; i < sum.values; ++i) {
      if (sum.of_value[i] && (i >= sum.terms || has_product(i))) spread(block, i, g);
    }
  }
};

inline void backward_blocks(const Sum& sum, const float* shared, float* own, int64_t begin, int64_t end) {
  const Backward backward(sum, shared, own);
  for (int64_t i = begin; i < end; ++i) backward.run(Block(sum, backward.plan, i));
}

// Adds up what the threads have gathered.
inline void collect_sum(const Sum& sum, const float* const* owns, int64_t threads) {
  const SumPlan plan(sum);
  const SumOwn at(sum, plan, const_cast<float*>(owns[0]));
  auto total = [&](const float* element) {
    double all = 0;
    for (int64_t t = 0; t < threads; ++t) all += static_cast<double>(owns[t][element - owns[0]]);
    return all;
  };
  for (int64_t i = 0; i < sum.terms; ++i) {
    if (!sum.of_scales[i]) continue;
    double all = 0;
    for (int64_t c = 0; c < sum.width; ++c) {
      const double one = total(at.of_scales + i * plan.lanes + c);
      if (sum.per_channel[i]) sum.of_scales[i][c] = static_cast<float>(one);
      all += one;
    }
    if (!sum.per_channel[i]) *sum.of_scales[i] = static_cast<float>(all);
  }
  int64_t first = 0, column = 0;
  for (int64_t p = 0; p < sum.products; ++p) {
    const int64_t rank = sum.ranks[p];
    for (int64_t c = 0; c < sum.width; ++c) {
      for (int64_t r = 0; r < rank; ++r) {
        const int64_t from = c * plan.padded + column + r;
        if (sum.of_down[p]) sum.of_down[p][c * rank + r] = static_cast<float>(total(at.of_down + from));
        if (sum.of_up) sum.of_up[(first + r) * sum.width + c] = static_cast<float>(total(at.of_up + from));
      }
    }
    first += rank;
    column += round_up(rank, kWidth);
  }
}

}  // namespace laurel::LAUREL_PATH
