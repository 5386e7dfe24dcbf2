// The forward pass of a Sum: H of a block, then y in one sweep.
#pragma once

#include "product.h"
#include "sum_plan.h"

namespace laurel::LAUREL_PATH {

// H (count, padded) of a block.
template <Order O>
void sum_hidden(const Sum& sum, const SumPlan& plan, const SumShared& shared, const Block& block, float* hidden) {
  int64_t column = 0;
  for (int64_t p = 0; p < sum.products; ++p) {
    const int64_t ranks = round_up(sum.ranks[p], kWidth);
    narrow_product<O>(sum.value[sum.sources[p]] + block.origin, block.step, block.count, sum.width,
                      shared.down_narrow + column, plan.padded, ranks, hidden + column, plan.padded, false);
    column += ranks;
  }
}

inline void sum_block(const Sum& sum, const SumPlan& plan, const SumShared& shared, const SumOwn& own,
                      const Block& block) {
  float* const hidden = sum.hidden ? sum.hidden + block.hidden : own.hidden;
  Factors factors[kMaxTerms];
  if (plan.channels) {
    sum_hidden<kRowsTouch>(sum, plan, shared, block, hidden);
  } else {
    sum_hidden<kDepthTouches>(sum, plan, shared, block, hidden);
  }
  int64_t first = 0, column = 0;
  for (int64_t p = 0; p < sum.products; ++p) {
    const int64_t rank = sum.ranks[p];
    if (plan.channels) {
      float* const turned = own.turned + first * own.turned_step;
      transpose(hidden + column, plan.padded, block.count, rank, turned, own.turned_step);
      factors[p] = {shared.up_wide + first, plan.ranks, turned, own.turned_step, rank};
    } else {
      factors[p] = {hidden + column, plan.padded, shared.up_wide + first * plan.lanes, plan.lanes, rank};
    }
    first += rank;
    column += round_up(rank, kWidth);
  }
  Addend addends[kMaxTerms];
  for (int64_t i = 0; i < sum.terms; ++i) {
    addends[i] = {sum.value[i] + block.origin, shared.scales + i * plan.lanes};
  }
  float* const y = sum.y + block.origin;
  const Wide job{factors, sum.products, addends, sum.terms, block.step, y, block.step, sum.relu != 0};
  plan.channels ? wide_product<false>(job, block.lines, block.length)
                : wide_product<true>(job, block.lines, block.length);
}

inline void forward_blocks(const Sum& sum, const float* shared_data, float* own_data, int64_t begin, int64_t end) {
  const SumPlan plan(sum);
  const SumShared shared(sum, plan, const_cast<float*>(shared_data));
  const SumOwn own(sum, plan, own_data);
  for (int64_t i = begin; i < end; ++i) sum_block(sum, plan, shared, own, Block(sum, plan, i));
}

}  // namespace laurel::LAUREL_PATH
