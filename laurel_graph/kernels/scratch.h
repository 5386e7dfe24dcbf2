// Memory of one task: on the stack, or from ONNX Runtime's allocator when a job is too wide for that.
#pragma once

#include "job.h"
#include "simd.h"

namespace laurel::LAUREL_PATH {

constexpr int64_t kStackFloats = 14 * 1024;

class Scratch {
 public:
  Scratch(const Job& job, int64_t floats) : job_(job), data(stack_) {
    if (floats > kStackFloats) {
      data = static_cast<float*>(job.allocate(job.allocator, static_cast<size_t>(floats) * sizeof(float)));
    }
  }
  ~Scratch() {
    if (data != stack_) job_.release(job_.allocator, data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  const Job& job_;
  alignas(64) float stack_[kStackFloats];

 public:
  float* data;
};

}  // namespace laurel::LAUREL_PATH
