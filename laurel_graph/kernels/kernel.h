// One node of a session: what it keeps from its creation, and how it runs.
#pragma once

#include <atomic>
#include <string>

#include "arguments.h"
#include "ort_api.h"

namespace laurel {

class Kernel {
 public:
  // Throws std::runtime_error with the reason if the node cannot run.
  Kernel(const ort::Api& api, const Operator& op, const ort::KernelInfo* info);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Throws std::runtime_error with the reason if the inputs do not fit.
  void compute(ort::KernelContext* context) const;

 private:
  struct Tensor {
    Shape shape;
    void* data = nullptr;
  };
  void check(ort::Status* status) const;
  [[noreturn]] void fail(const std::string& reason) const;
  Tensor tensor(const ort::Value* value) const;
  Tensor input(const ort::KernelContext* context, int index) const;
  void* output(ort::KernelContext* context, int index, const Shape& shape) const;
  void prepare_constants(const ort::KernelInfo* info);
  void prepare_quantizers(const ort::KernelInfo* info);
  void run(ort::KernelContext* context, Job* job, const Arguments& arguments, const void* const* previous) const;
  void run_tasks(ort::KernelContext* context, Job* job) const;

  const ort::Api& api_;
  const Operator op_;
  const std::string name_;
  const Path* path_ = nullptr;
  Type type_ = Type::kFloat;
  Storage storage_ = Storage::kElements;
  Quantizer quantizers_[3];
  size_t outputs_ = 1;
  int first_previous_ = 0;
  float epsilon_ = 0;
  ort::Allocator* allocator_ = nullptr;
  Arguments arguments_;
  bool factors_ready_ = false;
  bool all_constant_ = false;
  mutable std::atomic<int64_t> checked_width_{-1};  // the last D that the constants were found to fit
  Prepared prepared_;
  Buffer vectors_, factors_;
};

}  // namespace laurel
