// The sum that a residual is while it trains, in float32, and the steps that compute it and its gradients.
#pragma once

#include <cstddef>
#include <cstdint>

namespace laurel {

constexpr int kMaxTerms = 16;  // of a Sum; and as many products

// y = relu?(sum over terms of scale_i value_i + sum over products of (value_source A) U)
//
// Values, y and grad are (rows, width) when `inner` is 0, else (rows, width, inner) with the feature axis in the
// middle, without gaps. U are the rows of `up` that belong to a product. laurel_graph/torch_residual/native_sum.py fills in the same struct.
struct Sum {
  int64_t rows, width, inner;
  int64_t values, terms, products;  // the first `terms` values are terms
  int64_t relu;
  int64_t backward;  // the gradients are to be computed, else y and hidden
  int64_t threads;
  const int64_t* sources;        // the value of each product
  const int64_t* ranks;          // of each product
  const int64_t* per_channel;    // whether the scale of a term is (width), else ()
  const float* const* scales;    // of each term; null: 1
  const float* const* value;
  const float* const* down;      // A of each product, (width, rank)
  const float* up;               // (sum of ranks, width)
  float* y;                      // backward reads it if there is a relu
  float* hidden;                 // hidden_floats() that forward writes and backward reads; null if nobody needs them
  // Of backward alone; null where a gradient is not needed. A gradient has the shape of what it is of.
  const float* grad;
  float* const* of_scales;
  float* const* of_value;
  float* const* of_down;
  float* of_up;
};

// The steps of one instruction set. Blocks are independent pieces of the arrays; `shared` is what all blocks read of
// the parameters, `own` the memory of one thread, zero before its first block.
struct SumSteps {
  int64_t (*blocks)(const Sum& sum);
  size_t (*hidden_floats)(const Sum& sum);
  size_t (*shared_floats)(const Sum& sum);
  size_t (*own_floats)(const Sum& sum);
  void (*share)(const Sum& sum, float* shared);
  void (*forward)(const Sum& sum, const float* shared, float* own, int64_t begin, int64_t end);
  void (*backward)(const Sum& sum, const float* shared, float* own, int64_t begin, int64_t end);
  // Writes the gradients of the parameters: what the threads have gathered, in their order.
  void (*collect)(const Sum& sum, const float* const* own, int64_t threads);
};

// Floats of Sum::hidden on the chosen instruction set.
size_t hidden_floats(const Sum& sum);
// Run on sum.threads threads, fewer where there is little to do. May throw std::bad_alloc or std::system_error.
void sum_forward(const Sum& sum);
void sum_backward(const Sum& sum);

}  // namespace laurel
