// Runs the blocks of a Sum on threads.
#include "sum.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "job.h"

namespace laurel {

namespace {

constexpr double kThreadNs = 100000;  // less work than this is not worth a thread

const SumSteps& steps() {
  const Path* const path = choose_path();
  return (path ? path : available_paths()[0])->sum;
}

int64_t threads_for(const Sum& sum, int64_t blocks) {
  int64_t ranks = 0;
  for (int64_t p = 0; p < sum.products; ++p) ranks += sum.ranks[p];
  const double elements = static_cast<double>(sum.rows * sum.width * std::max<int64_t>(1, sum.inner));
  const double ns = elements * (0.3 * static_cast<double>(sum.terms) + 0.04 * static_cast<double>(ranks));
  const int64_t worth = static_cast<int64_t>(std::min(ns / kThreadNs, 1e6));
  return std::max<int64_t>(1, std::min({sum.threads, worth, blocks}));
}

using Run = void (*)(const Sum& sum, const float* shared, float* own, int64_t begin, int64_t end);

void run_on_threads(const Sum& sum, const SumSteps& steps, Run run, bool collects) {
  std::vector<float> shared(steps.shared_floats(sum));
  steps.share(sum, shared.data());
  const int64_t blocks = steps.blocks(sum), threads = threads_for(sum, blocks);
  std::vector<std::vector<float>> memory;
  std::vector<const float*> owns;
  for (int64_t t = 0; t < threads; ++t) {
    memory.emplace_back(steps.own_floats(sum));
    owns.push_back(memory.back().data());
  }
  auto share_of = [&](int64_t t) {
    run(sum, shared.data(), memory[t].data(), blocks * t / threads, blocks * (t + 1) / threads);
  };
  std::vector<std::thread> others;
  std::exception_ptr failed;
  try {
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(share_of, t);
    share_of(0);
  } catch (...) {
    failed = std::current_exception();
  }
  for (std::thread& other : others) other.join();
  if (failed) std::rethrow_exception(failed);
  if (collects) steps.collect(sum, owns.data(), threads);
}

}  // namespace

size_t hidden_floats(const Sum& sum) { return steps().hidden_floats(sum); }

void sum_forward(const Sum& sum) { run_on_threads(sum, steps(), steps().forward, false); }

void sum_backward(const Sum& sum) { run_on_threads(sum, steps(), steps().backward, true); }

}  // namespace laurel
