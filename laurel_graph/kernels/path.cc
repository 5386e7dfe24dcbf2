// The kernels on one instruction set. Compiled once for each, with LAUREL_PATH set to its name.
#include "channels.h"
#include "elementwise.h"
#include "gradients.h"
#include "job.h"
#include "pack.h"
#include "quantized.h"
#include "sum_forward.h"
#include "tokens.h"

#define LAUREL_TEXT(name) #name
#define LAUREL_NAME(name) LAUREL_TEXT(name)

namespace laurel::LAUREL_PATH {

// Rough speeds of one core, to weigh work against the price of handing it to another thread.
constexpr double kFlopsPerNs = kWidth * 8.0;
constexpr double kBytesPerNs = 16.0;
constexpr double kConvertNs = 8.0 / kWidth;  // from bytes and back, for an element of all arrays
constexpr double kTaskNs = 12000;  // less work than this is not worth handing over
constexpr int64_t kWorthSharing = 192 << 10;  // elements read or written from which two threads are faster than one
constexpr int64_t kTaskElements = 52 << 10;   // of one elementwise task
constexpr int64_t kMostTasks = 256;
constexpr int64_t kShortRow = 512;  // positions of a row that may be divided by channels
constexpr int64_t kMostShares = 4;  // each sums up the parts of all
constexpr int64_t kFewRows = 16;  // that may be divided by columns
constexpr int64_t kManyWeights = 128 << 10;  // elements of A and B that take long to read
constexpr int64_t kMostColumnShares = 8;
constexpr int64_t kBlockX = 32 << 10;  // elements of x in a block of rows
constexpr int64_t kMostBlockRows = 24;
constexpr double kCacheBytes = 32 << 20;  // arrays larger than this come from memory

inline bool elementwise(const Job& job) { return job.rank == 0 && !is_norm(job.epilogue); }

// Equal shares, an even number of them: small ones, so that little moves from the cache of one processor to another's
// when a thread wakes late and another takes some of its shares.
void plan_elementwise(Job* job, int arrays) {
  constexpr int64_t kUnit = 1024;
  const int64_t elements = job->rows * job->width * larger(1, job->inner), touched = elements * arrays;
  const int64_t shares = touched < kWorthSharing ? 1 : smaller(kMostTasks, touched / kTaskElements / 2 * 2);
  job->block = round_up((elements + shares - 1) / shares, kUnit);
  job->tasks = (elements + job->block - 1) / job->block;
}

// The shares into which the columns of few rows are divided, or 1: where it takes longer to read A and B than to
// multiply by them, each thread should read a part of them.
int64_t column_shares(const Job& job) {
  if (job.rows > kFewRows || is_norm(job.epilogue) || job.storage != Storage::kElements) return 1;
  const int64_t room = kSharedFloats / round_up(larger(1, job.rows * job.rank), kWidth);
  const int64_t weights = 2 * job.width * job.rank;
  const int64_t worth = weights < kManyWeights ? 1 : larger(2, smaller(kMostColumnShares, weights / kManyWeights));
  return larger(1, smaller(worth, smaller(room, job.width / kUpPanel)) / 2 * 2);
}

// Few rows by columns. Others in equal shares, an even number of them so that two threads get the same, and not much
// less than a block each where there are many.
void plan_tokens(Job* job, double ns) {
  job->parts = column_shares(*job);
  if (job->parts > 1) {
    job->phases = 2;
    job->tasks = job->parts;
    return;
  }
  // Whole tiles, few enough that x, f and y stay in the second-level cache with A and B.
  const int64_t fit = kBlockX / job->width / kRows * kRows;
  job->block_rows = larger(kRows, smaller(kMostBlockRows, fit));
  const int64_t worth = smaller(kMostTasks, static_cast<int64_t>(ns / kTaskNs));
  const int64_t most = larger(smaller(8, job->rows / 4), job->rows / 48);
  job->tasks = larger(1, smaller(worth, most) / 2 * 2);
}

// A row at a time, or blocks of positions whose x stays in the second-level cache between its two uses. Where that
// leaves too few tasks to share, short rows are divided by channels and long ones into more blocks, in even numbers so
// that two threads get the same.
void plan_channels(Job* job, double ns) {
  const int64_t fits = larger(2, (224 << 10) / (job->width * 4 * kSpanPositions));
  const int64_t scratch = larger(1, kStackFloats / ((job->rank + kGroup) * kSpanPositions));
  const int64_t tiles = larger(1, job->inner / kSpanPositions), vectors = (job->inner + kWidth - 1) / kWidth;
  const int64_t block = smaller(fits, scratch);
  const int64_t worth = smaller(8, static_cast<int64_t>(ns / kTaskNs));
  const int64_t wanted = (worth + job->rows - 1) / job->rows;  // tasks for each row
  const int64_t share_floats = vectors * kWidth * gathered_rows(*job);
  const int64_t room = smaller(kSharedFloats / (job->rows * share_floats), job->width / (4 * kShareUnit));
  const int64_t shares = smaller(smaller(kMostShares, wanted), room) / 2 * 2;
  if (job->inner <= kShortRow && shares > 1) {
    job->phases = 2;
    job->parts = shares;
  } else {
    int64_t parts = larger((tiles + block - 1) / block, wanted);
    if (job->rows % 2 && parts > 1) parts = round_up(parts, 2);
    job->parts = smaller(parts, larger(tiles, smaller(2, vectors)));
  }
  job->tasks = job->rows * job->parts;
}

// Where a part of a row's positions begins: at whole tiles if each part has some, so that only the last one has what
// is left, else at whole vectors.
inline int64_t part_begin(const Job& job, int64_t part) {
  if (part == job.parts) return job.inner;
  const int64_t vectors = (job.inner + kWidth - 1) / kWidth;
  const int64_t step = vectors / job.parts >= kSpan ? kSpan : 1;
  return vectors / step * part / job.parts * step * kWidth;
}

// Moves a scalar beta into the products and gamma, so that only x itself is left to multiply by it.
void fold_beta(Job* job) {
  const float beta = job->beta.data[0];
  for (int p = 0; p < job->products; ++p) job->product[p].scale *= beta;
  for (int j = 0; j < job->previous; ++j) job->gamma[j] *= beta;
}

void plan(Job* job) {
  const double elements = static_cast<double>(job->rows * job->width * larger(1, job->inner));
  const int arrays = 3 + (job->sum ? 1 : 0) + job->previous + (job->products ? job->products - 1 : 0);
  const double bytes = elements * arrays * static_cast<double>(size_of(job->type));
  job->streams = bytes > kCacheBytes;
  const double converted = job->storage == Storage::kElements ? 0 : elements * kConvertNs;
  const double ns = elements * 4 * static_cast<double>(job->rank) / kFlopsPerNs + bytes / kBytesPerNs + converted;
  if (elementwise(*job)) return plan_elementwise(job, arrays);
  if (!job->beta.stride) fold_beta(job);
  job->inner ? plan_channels(job, ns) : plan_tokens(job, ns);
}

template <typename T>
void run_as(const Job& job, int64_t task) {
  if (elementwise(job)) {
    const int64_t elements = job.rows * job.width * larger(1, job.inner);
    const int64_t begin = task * job.block, end = smaller(elements, begin + job.block);
    job.inner ? elementwise_channels<T>(job, begin, end) : elementwise_tokens<T>(job, begin, end);
  } else if (job.inner == 0) {
    if (job.phases > 1) return run_columns<T>(job, task);
    run_tokens<T>(job, job.rows * task / job.tasks, job.rows * (task + 1) / job.tasks);
  } else {
    const int64_t row = task / job.parts, part = task % job.parts;
    if (job.phases > 1) return run_share<T>(job, row, part);
    run_positions<T>(job, row, part_begin(job, part), part_begin(job, part + 1));
  }
}

void run(const Job& job, int64_t task) {
  const int64_t begin = job.rows * task / job.tasks, end = job.rows * (task + 1) / job.tasks;
  if (job.storage == Storage::kUnsignedBytes) return run_quantized<uint8_t>(job, begin, end);
  if (job.storage == Storage::kSignedBytes) return run_quantized<int8_t>(job, begin, end);
  with_type(job.type, [&](auto* null) { run_as<std::remove_pointer_t<decltype(null)>>(job, task); });
}

// Multiply-adds on registers alone, as many independent ones as hide their latency.
double multiply_adds(int64_t rounds) {
  Floats sums[12];
  for (int i = 0; i < 12; ++i) sums[i] = splat(static_cast<float>(i));
  Floats factor = splat(0.999f), term = splat(0.001f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = sums[i] * factor + term;
  }
  Floats total{};
  for (int i = 0; i < 12; ++i) total += sums[i];
  volatile float kept = sum_lanes(total);
  (void)kept;
  return 2.0 * 12 * kWidth * static_cast<double>(rounds);
}

constexpr SumSteps kSumSteps = {
    [](const Sum& sum) { return SumPlan(sum).blocks; },
    [](const Sum& sum) {
      return static_cast<size_t>(sum.rows * larger(1, sum.inner) * SumPlan(sum).padded);
    },
    [](const Sum& sum) { return SumShared(sum, SumPlan(sum), nullptr).floats; },
    [](const Sum& sum) { return SumOwn(sum, SumPlan(sum), nullptr).floats; },
    share_sum,
    forward_blocks,
    backward_blocks,
    collect_sum,
};

extern const Path path;
const Path path = {LAUREL_NAME(LAUREL_PATH), down_size, up_size, pack_down, pack_up, convert, plan, run,
                   multiply_adds, kSumSteps};

}  // namespace laurel::LAUREL_PATH
