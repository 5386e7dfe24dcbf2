// One residual to compute, and the table of functions that compute it on one instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "operators.h"
#include "sum.h"

namespace laurel {

enum class Type { kFloat, kFloat16, kBFloat16, kDouble };

constexpr size_t size_of(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// A vector over the feature axis in float32: element i is data[i * stride]. A scalar has stride 0 and is repeated
// kRepeat times, so that both kinds are read by the same vector loads.
struct Vector {
  const float* data = nullptr;
  int64_t stride = 0;
};
constexpr int kRepeat = 64;

// One low-rank product (scale * source A) B: A is (D, rank), B is (rank, D).
struct Product {
  const void* source = nullptr;
  float scale = 1;
  int64_t rank = 0;
  const float* down = nullptr;  // A as Path::pack_down lays it out
};

constexpr int64_t kSharedFloats = 20 * 1024;

constexpr int kMaxProducts = 1 + kMaxPrevious;

// What x, f and y hold: elements of the job's type, or bytes that stand for float32 values.
enum class Storage { kElements, kUnsignedBytes, kSignedBytes };

// A byte b stands for (b - zero) * scale.
struct Quantizer {
  float scale = 1;
  int zero = 0;
};

// The inputs of an operator other than x, f and the earlier activations, in order.
enum Parameter { kAlpha, kBeta, kA, kB, kGamma, kPreviousA, kPreviousB, kBias, kScale, kOffset, kParameters };

// y = epilogue(alpha (f + bias) + beta (x + sum of products + sum of gamma_j previous_j))
//
// Arrays are (rows, width) when `inner` is 0, else (rows, width, inner) with the feature axis in the middle. y may be
// x or f itself.
struct Job {
  Type type = Type::kFloat;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t inner = 0;
  const void* x = nullptr;
  const void* f = nullptr;
  void* y = nullptr;
  void* sum = nullptr;  // the residual before a norm, or null
  Storage storage = Storage::kElements;
  Quantizer quantizers[3];  // of x, f and y
  Vector alpha, beta, bias, scale, offset;
  bool biased = false;
  Epilogue epilogue = Epilogue::kNone;
  float epsilon = 0;
  int previous = 0;  // earlier activations taken as they are
  const void* previous_x[kMaxPrevious] = {};
  float gamma[kMaxPrevious] = {};
  int products = 0;
  Product product[kMaxProducts];
  int64_t rank = 0;           // of all products together
  const float* up = nullptr;  // all B stacked, (rank, D), as Path::pack_up lays them out

  // The parameters as they came in, for run_double.
  const void* raw[kParameters] = {};

  // Memory for a task whose scratch does not fit on the stack.
  void* allocator = nullptr;
  void* (*allocate)(void* allocator, size_t bytes) = nullptr;
  void (*release)(void* allocator, void* memory) = nullptr;

  // Set by Path::plan, which also moves a scalar beta into scale and gamma of the low-rank part.
  int64_t tasks = 1;
  int64_t block = 0;       // elements of a task of an elementwise job
  int64_t parts = 1;       // tasks of one row, or shares of the columns of all
  int phases = 1;          // times that all tasks run, one phase after the other
  int64_t block_rows = 1;  // rows that share one pass over A and B
  bool streams = false;    // the arrays are too large to be in the caches

  // Set for every phase by who runs it.
  int phase = 0;
  float* shared = nullptr;  // kSharedFloats of memory for what one phase leaves to the next
};

// One instruction set.
struct Path {
  const char* name;
  // Floats needed by pack_down and pack_up.
  size_t (*down_size)(bool channels, int64_t width, int64_t rank);
  size_t (*up_size)(bool channels, int64_t width, int64_t rank);
  // Lays out A (width, rank), or rows [first, first + rank) of the stacked B, of element type `type`.
  void (*pack_down)(bool channels, const void* A, Type type, int64_t width, int64_t rank, float* out);
  void (*pack_up)(bool channels, const void* B, Type type, int64_t width, int64_t rank, int64_t first, int64_t total,
                  float* out);
  // Converts n elements to float32.
  void (*convert)(const void* from, Type type, int64_t n, float* to);
  // Divides the job into independent tasks.
  void (*plan)(Job* job);
  void (*run)(const Job& job, int64_t task);
  // Runs multiply-adds and returns how many floating-point operations they were; for measuring.
  double (*multiply_adds)(int64_t rounds);
  SumSteps sum;
};

// The paths this machine can run, best first; null-terminated.
const Path* const* available_paths();
// The path named by LAUREL_ISA, or the best one; null if that name is not available here.
const Path* choose_path();

// A float64 job, in plain loops over `raw`; one task for each row or (row, inner position).
void plan_double(Job* job);
void run_double(const Job& job, int64_t task);

}  // namespace laurel
