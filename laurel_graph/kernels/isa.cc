// Which instruction set to run on.
#include <cstdlib>
#include <cstring>

#include "job.h"

namespace laurel {

#if !defined(LAUREL_NEON_PATH)
namespace baseline {
extern const Path path;
}
#endif
#if defined(LAUREL_X86_PATHS)
namespace avx2 {
extern const Path path;
}
namespace avx512 {
extern const Path path;
}
#endif
#if defined(LAUREL_NEON_PATH)
namespace neon {
extern const Path path;
}
#endif

const Path* const* available_paths() {
  static const Path* paths[4] = {};
  static const bool ready = [] {
    int count = 0;
#if defined(LAUREL_X86_PATHS)
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      paths[count++] = &avx512::path;
    }
    if (fma) paths[count++] = &avx2::path;
#endif
#if defined(LAUREL_NEON_PATH)
    paths[count++] = &neon::path;
#else
    paths[count++] = &baseline::path;
#endif
    return true;
  }();
  (void)ready;
  return paths;
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
