// Counts the bytes that a process asks of the heap, for test_allocations.py: preloaded, it stands before the C library's
// own functions. Keeps the largest request too, so that a test can tell bookkeeping from arrays.
#include <atomic>
#include <cerrno>
#include <cstddef>

extern "C" {

void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

static std::atomic<bool> counting{false};
static std::atomic<size_t> total{0}, largest{0};

static void count(size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  total += bytes;
  size_t before = largest.load();
  while (before < bytes && !largest.compare_exchange_weak(before, bytes)) {
  }
}

void count_begin() {
  total = largest = 0;
  counting = true;
}
void count_end() { counting = false; }
size_t count_total() { return total; }
size_t count_largest() { return largest; }

void* malloc(size_t bytes) {
  count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(size_t number, size_t bytes) {
  count(number * bytes);
  return __libc_calloc(number, bytes);
}
void* realloc(void* memory, size_t bytes) {
  count(bytes);
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  void* found = memalign(alignment, bytes);
  if (!found) return ENOMEM;
  *memory = found;
  return 0;
}
}
