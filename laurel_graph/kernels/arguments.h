// The inputs of one operator: where each parameter stands, what shape it must have, and its float32 form.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "job.h"

namespace laurel {

// A shape without memory of its own: a run allocates nothing.
class Shape {
 public:
  static constexpr size_t kMostAxes = 16;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) sizes_[count_++] = size;
  }
  void resize(size_t count) { count_ = count; }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t* data() { return sizes_; }
  const int64_t* data() const { return sizes_; }
  int64_t operator[](size_t i) const { return sizes_[i]; }
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + count_; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  size_t count_ = 0;
  int64_t sizes_[kMostAxes];
};

std::string to_text(const Shape& shape);
int64_t count_elements(const Shape& shape);

struct Argument {
  int index = -1;  // which input; -1: the operator has no such parameter
  bool constant = false;
  Shape shape;
  const void* data = nullptr;
};
using Arguments = std::array<Argument, kParameters>;

// The parameters of an operator with their input numbers.
Arguments arguments_of(const Operator& op);

// Why the parameters do not fit a feature axis of `width`, or an empty text.
std::string misfit(const Operator& op, const Arguments& arguments, int64_t width);
// The same for A, B and their kin alone.
std::string factor_misfit(const Operator& op, const Arguments& arguments, int64_t width);

// Float32 memory, aligned for any vector.
class Buffer {
 public:
  float* resize(size_t floats);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, std::align_val_t(64)); }
  };
  std::unique_ptr<float[], Free> data_;
};

// The parameters as the paths want them: vectors as float32, factors packed. Memory is either this object's own
// (constants, once) or a run's (whatever may change between runs).
struct Prepared {
  Vector vectors[kParameters];
  const float* down[kMaxProducts] = {};
  const float* up = nullptr;
  int64_t rank[kMaxProducts] = {};
  int products = 0;
  int64_t total_rank = 0;
};

// Number of floats that prepare_vector needs for this argument: none if it can be read where it is.
size_t vector_floats(const Argument& argument, Type type, bool copy);
Vector prepare_vector(const Path& path, const Argument& argument, Type type, bool copy, float* memory);

// Fills in the number and ranks of the low-rank products.
void describe_factors(const Operator& op, const Arguments& arguments, Prepared* out);
size_t factor_floats(const Path& path, const Operator& op, const Arguments& arguments, int64_t width);
void prepare_factors(const Path& path, const Operator& op, const Arguments& arguments, Type type, int64_t width,
                     float* memory, Prepared* out);

}  // namespace laurel
