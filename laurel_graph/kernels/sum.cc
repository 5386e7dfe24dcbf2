// Runs the blocks of a Sum on threads.
#include "sum.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

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

// The OpenMP that torch runs on, by the entry points that GCC compiles to and LLVM's library has too. Its threads wait
// for work by spinning, so that threads of our own would have to share processors with them.
struct OpenMP {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;

  OpenMP() {
#if !defined(_WIN32)
    find("GOMP_parallel", &parallel);
    find("omp_get_thread_num", &thread);
    find("omp_get_num_threads", &threads);
#endif
  }
  bool found() const { return parallel && thread && threads; }

 private:
#if !defined(_WIN32)
  template <typename Function>
  static void find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
#endif
};

const OpenMP& open_mp() {
  static const OpenMP found;
  return found;
}

// Calls function(0) to function(count - 1), each of which must not throw, side by side.
template <typename Function>
void side_by_side(int64_t count, Function function) {
  if (count == 1) return function(0);
  const OpenMP& team = open_mp();
  if (team.found()) {
    struct Work {
      int64_t count;
      Function* function;
    } work{count, &function};
    auto member = [](void* data) {
      const Work& given = *static_cast<const Work*>(data);
      const OpenMP& own = open_mp();
      for (int64_t i = own.thread(); i < given.count; i += own.threads()) (*given.function)(i);
    };
    return team.parallel(member, &work, static_cast<unsigned>(count), 0);
  }
  std::vector<std::thread> others;
  std::exception_ptr failed;
  try {
    for (int64_t i = 1; i < count; ++i) others.emplace_back(function, i);
    function(0);
  } catch (...) {
    failed = std::current_exception();
  }
  for (std::thread& other : others) other.join();
  if (failed) std::rethrow_exception(failed);
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
  side_by_side(threads, [&](int64_t t) {
    run(sum, shared.data(), memory[t].data(), blocks * t / threads, blocks * (t + 1) / threads);
  });
  if (collects) steps.collect(sum, owns.data(), threads);
}

}  // namespace

size_t hidden_floats(const Sum& sum) { return steps().hidden_floats(sum); }

void sum_forward(const Sum& sum) { run_on_threads(sum, steps(), steps().forward, false); }

void sum_backward(const Sum& sum) { run_on_threads(sum, steps(), steps().backward, true); }

}  // namespace laurel
