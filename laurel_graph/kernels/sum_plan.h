// How a Sum is cut into blocks, and where its parameters and a thread's memory lie.
#pragma once

#include "pack.h"
#include "sum.h"

namespace laurel::LAUREL_PATH {

constexpr int64_t kBlockElements = 48 << 10;  // of G and of one value: both stay in the second-level cache
constexpr int64_t kBlockUnit = 48;            // positions or rows of whole tiles on every instruction set
constexpr int64_t kLineElements = 4096;       // without low-rank products a line need only stay in the first level

// An odd number of cache lines: rows of a power of two would fall on each other in the cache.
LAUREL_INLINE int64_t spread_step(int64_t floats) { return round_up(floats, 16) | 16; }

struct SumPlan {
  bool channels;
  int64_t ranks = 0;   // of all products
  int64_t padded = 0;  // each product's ranks in whole vectors
  int64_t lanes;       // the width in whole vectors
  int64_t extent;      // positions of a sample, or rows
  int64_t parts;       // blocks of a sample
  int64_t blocks;
  int64_t most;        // positions or rows of the largest block
  bool packs;          // the block's G is kept in scratch
  int64_t g_step;      // between its lines there

  explicit SumPlan(const Sum& sum) : channels(sum.inner > 0) {
    for (int64_t p = 0; p < sum.products; ++p) {
      ranks += sum.ranks[p];
      padded += round_up(sum.ranks[p], kWidth);
    }
    lanes = round_up(sum.width, kWidth);
    extent = channels ? sum.inner : sum.rows;
    const int64_t fits = sum.products || !channels ? kBlockElements / larger(1, sum.width) : kLineElements;
    const int64_t units = larger(1, extent / kBlockUnit), block = larger(1, fits / kBlockUnit);
    parts = (units + block - 1) / block;
    blocks = sum.rows * sum.width == 0 ? 0 : channels ? sum.rows * parts : parts;
    most = 0;
    for (int64_t part = 0; part < parts; ++part) most = larger(most, begin(part + 1) - begin(part));
    packs = sum.relu || (channels && sum.products);
    g_step = sum.products ? spread_step(channels ? most : sum.width) : 0;
  }

  // Where a part begins: only the last one has what is left of a unit.
  int64_t begin(int64_t part) const {
    return part == parts ? extent : larger(1, extent / kBlockUnit) * part / parts * kBlockUnit;
  }
};

// A block as lines of adjacent elements: channels of some positions, or rows.
struct Block {
  int64_t origin, lines, length, step;
  int64_t count;   // positions or rows
  int64_t hidden;  // where its part of H begins

  Block(const Sum& sum, const SumPlan& plan, int64_t number) {
    const int64_t sample = number / plan.parts, begin = plan.begin(number % plan.parts);
    count = plan.begin(number % plan.parts + 1) - begin;
    origin = plan.channels ? sample * sum.width * sum.inner + begin : begin * sum.width;
    lines = plan.channels ? sum.width : count;
    length = plan.channels ? count : sum.width;
    step = plan.channels ? sum.inner : sum.width;
    hidden = (plan.channels ? sample * sum.inner + begin : begin) * plan.padded;
  }
};

// Gives out parts of one piece of memory, each beginning at a cache line.
class Carve {
 public:
  explicit Carve(float* data) : data_(data) {}
  float* take(int64_t floats) {
    float* const part = data_ ? data_ + used_ : nullptr;
    used_ += round_up(floats, 16);
    return part;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  float* data_;
  int64_t used_ = 0;
};

// The parameters. Narrow: (width, padded), wide: (ranks, lanes) but for U over channels, (width, ranks).
struct SumShared {
  float *scales, *up_narrow, *up_wide, *down_narrow, *down_wide;
  size_t floats;

  SumShared(const Sum& sum, const SumPlan& plan, float* data) {
    Carve carve(data);
    const bool back = sum.backward != 0;
    const int64_t narrow = sum.width * plan.padded, wide = plan.ranks * plan.lanes;
    scales = carve.take(sum.terms * plan.lanes);
    up_narrow = carve.take(back ? narrow : 0);
    up_wide = carve.take(back ? 0 : wide);
    down_narrow = carve.take(back ? 0 : narrow);
    down_wide = carve.take(back && !plan.channels ? wide : 0);
    floats = carve.used();
  }
};

// The memory of a thread: one block's arrays, then what it gathers of the gradients, both with zeros at the start.
struct SumOwn {
  float *hidden, *turned;                   // H or P of a block (count, padded), and (ranks, count) over channels
  float *g, *dots;                          // G, and the gradients of the scales over rows
  float *of_scales, *of_up, *of_down;       // (terms, lanes), (width, padded), (width, padded)
  int64_t turned_step;
  size_t floats;

  SumOwn(const Sum& sum, const SumPlan& plan, float* data) {
    Carve carve(data);
    const bool back = sum.backward != 0;
    turned_step = spread_step(plan.most);
    hidden = carve.take(plan.most * plan.padded);
    turned = carve.take(plan.channels ? (plan.ranks + 3) * turned_step : 0);
    const int64_t lines = plan.channels ? sum.width : plan.most;
    const int64_t line = plan.channels ? plan.most : sum.width;
    g = carve.take(back && plan.packs ? lines * plan.g_step + line : 0);
    dots = carve.take(back ? sum.terms * plan.lanes : 0);
    of_scales = carve.take(back ? sum.terms * plan.lanes : 0);
    of_up = carve.take(back ? sum.width * plan.padded : 0);
    of_down = carve.take(back ? sum.width * plan.padded : 0);
    floats = carve.used();
  }
};

// Lays out the parameters.
inline void share_sum(const Sum& sum, float* data) {
  const SumPlan plan(sum);
  const SumShared shared(sum, plan, data);
  for (int64_t i = 0; i < sum.terms; ++i) {
    for (int64_t c = 0; c < sum.width; ++c) {
      const float* const scale = sum.scales[i];
      shared.scales[i * plan.lanes + c] = scale ? scale[sum.per_channel[i] ? c : 0] : 1.0f;
    }
  }
  int64_t first = 0, column = 0;
  for (int64_t p = 0; p < sum.products; ++p) {
    const int64_t rank = sum.ranks[p];
    for (int64_t r = 0; r < rank; ++r) {
      for (int64_t c = 0; c < sum.width; ++c) {
        const float up = sum.up[(first + r) * sum.width + c], down = sum.down[p][c * rank + r];
        const int64_t narrow = c * plan.padded + column + r, wide = (first + r) * plan.lanes + c;
        if (sum.backward) {
          shared.up_narrow[narrow] = up;
          if (!plan.channels) shared.down_wide[wide] = down;
        } else {
          shared.down_narrow[narrow] = down;
          shared.up_wide[plan.channels ? c * plan.ranks + first + r : wide] = up;
        }
      }
    }
    first += rank;
    column += round_up(rank, kWidth);
  }
}

}  // namespace laurel::LAUREL_PATH
