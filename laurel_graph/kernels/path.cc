// The kernels on one instruction set. Compiled once for each, with LAUREL_PATH set to its name.
#include "channels.h"
#include "elementwise.h"
#include "job.h"
#include "pack.h"
#include "tokens.h"

#define LAUREL_TEXT(name) #name
#define LAUREL_NAME(name) LAUREL_TEXT(name)

namespace laurel::LAUREL_PATH {

// Rough speeds of one core, to weigh work against the price of handing it to another thread.
constexpr double kFlopsPerNs = kWidth * 8.0;
constexpr double kBytesPerNs = 10.0;
constexpr double kTaskNs = 3000;  // a task of this length is worth handing over
constexpr int64_t kMostTasks = 256;

inline bool elementwise(const Job& job) {
  const bool norm = job.epilogue == Epilogue::kLayerNorm || job.epilogue == Epilogue::kRMSNorm;
  return job.rank == 0 && !norm;
}

// Tasks of about equal size for work of `ns` in all; 1 if it is too little to share.
inline int64_t tasks_for(double ns, int64_t units) {
  const int64_t wanted = static_cast<int64_t>(ns / kTaskNs);
  return larger(1, smaller(units, smaller(wanted, kMostTasks)));
}

void plan(Job* job) {
  const int64_t positions = larger(1, job->inner);
  const double elements = static_cast<double>(job->rows) * job->width * positions;
  const int arrays = 3 + (job->sum ? 1 : 0) + job->previous + (job->products ? job->products - 1 : 0);
  const double bytes = elements * arrays * size_of(job->type);
  const double ns = elements * 4 * job->rank / kFlopsPerNs + bytes / kBytesPerNs;
  if (elementwise(*job)) {
    job->tasks = tasks_for(ns, round_up(static_cast<int64_t>(elements), 1024) / 1024);
    job->block = round_up((static_cast<int64_t>(elements) + job->tasks - 1) / job->tasks, 64);
    job->tasks = (static_cast<int64_t>(elements) + job->block - 1) / job->block;
  } else if (job->inner == 0) {
    job->tasks = tasks_for(ns, job->rows);
    // Weights that do not stay in the second-level cache are shared by several tiles of rows.
    job->block_tiles = job->width * job->rank * 8 > (256 << 10) ? 4 : 1;
  } else {
    // Blocks of positions whose x stays in the second-level cache between its two uses.
    constexpr int64_t kUnit = kSpan * kWidth;
    const int64_t fits = larger(1, (192 << 10) / (job->width * 4 * kUnit));
    const int64_t wanted = tasks_for(ns, kMostTasks);
    const int64_t units = (job->inner + kUnit - 1) / kUnit;
    const int64_t per_row = (wanted + job->rows - 1) / job->rows;
    const int64_t scratch = larger(1, kStackFloats / (job->rank * kUnit));
    const int64_t block = larger(1, smaller(smaller(fits, scratch), units / per_row));
    job->block = block * kUnit;
    job->blocks_per_row = (job->inner + job->block - 1) / job->block;
    job->tasks = job->rows * job->blocks_per_row;
  }
}

template <typename T>
void run_as(const Job& job, int64_t task) {
  if (elementwise(job)) {
    const int64_t elements = job.rows * job.width * larger(1, job.inner);
    const int64_t begin = task * job.block, end = smaller(elements, begin + job.block);
    job.inner ? elementwise_channels<T>(job, begin, end) : elementwise_tokens<T>(job, begin, end);
  } else if (job.inner == 0) {
    run_tokens<T>(job, job.rows * task / job.tasks, job.rows * (task + 1) / job.tasks);
  } else {
    const int64_t begin = task % job.blocks_per_row * job.block;
    run_channels<T>(job, task / job.blocks_per_row, begin, smaller(job.inner, begin + job.block));
  }
}

void run(const Job& job, int64_t task) {
  with_type(job.type, [&](auto* null) { run_as<std::remove_pointer_t<decltype(null)>>(job, task); });
}

extern const Path path;
const Path path = {LAUREL_NAME(LAUREL_PATH), down_size, up_size, pack_down, pack_up, convert, plan, run};

}  // namespace laurel::LAUREL_PATH
