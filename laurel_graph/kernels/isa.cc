// Which instruction set to run on.
#include <cstdlib>
#include <cstring>

#include "job.h"

namespace laurel {

// The build says which paths there are.
#define LAUREL_DECLARE(name) \
  namespace name {           \
  extern const Path path;    \
  }
#if defined(LAUREL_HAS_avx512)
LAUREL_DECLARE(avx512)
#endif
#if defined(LAUREL_HAS_avx2)
LAUREL_DECLARE(avx2)
#endif
#if defined(LAUREL_HAS_neon)
LAUREL_DECLARE(neon)
#endif
#if defined(LAUREL_HAS_baseline)
LAUREL_DECLARE(baseline)
#endif
#undef LAUREL_DECLARE

namespace {

struct Available {
  const Path* paths[5] = {};
  int count = 0;

  Available() {
#if defined(LAUREL_HAS_avx512)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      paths[count++] = &avx512::path;
    }
#endif
#if defined(LAUREL_HAS_avx2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) paths[count++] = &avx2::path;
#endif
#if defined(LAUREL_HAS_neon)
    paths[count++] = &neon::path;
#endif
#if defined(LAUREL_HAS_baseline)
    paths[count++] = &baseline::path;
#endif
  }
};

}  // namespace

const Path* const* available_paths() {
  static const Available available;
  return available.paths;
}

const Path* choose_path() {
  const char* wanted = std::getenv("LAUREL_ISA");
  const Path* const* paths = available_paths();
  if (!wanted || !*wanted) return paths[0];
  for (; *paths; ++paths) {
    if (!std::strcmp((*paths)->name, wanted)) return *paths;
  }
  return nullptr;
}

}  // namespace laurel
