#include "kernel.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace laurel {

namespace {

// 1 and 0 for what an operator does not have.
struct Repeated {
  alignas(64) float values[kRepeat];
  explicit Repeated(float value) { std::fill(values, values + kRepeat, value); }
};
const Repeated kOnes(1.0f), kZeros(0.0f);
const Repeated kNoBias(-0.0f);  // added to anything, -0 too, it leaves the bits alone

bool is_factor(int parameter) {
  return parameter == kA || parameter == kB || parameter == kPreviousA || parameter == kPreviousB;
}

// Memory that a run takes from the session's allocator, given back at its end.
struct Loan {
  const ort::Api* api;
  ort::Allocator* allocator;
};

void* borrow(void* loan, size_t bytes) {
  auto* from = static_cast<Loan*>(loan);
  void* memory = nullptr;
  if (ort::Status* status = from->api->AllocatorAlloc(from->allocator, bytes, &memory)) {
    from->api->ReleaseStatus(status);
    throw std::bad_alloc();
  }
  return memory;
}

void give_back(void* loan, void* memory) {
  auto* from = static_cast<Loan*>(loan);
  if (ort::Status* status = from->api->AllocatorFree(from->allocator, memory)) from->api->ReleaseStatus(status);
}

struct Borrowed {
  void* loan;
  void* memory;
  Borrowed(void* from, size_t bytes) : loan(from), memory(bytes ? borrow(from, bytes) : nullptr) {}
  ~Borrowed() {
    if (memory) give_back(loan, memory);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
};

}  // namespace

void Kernel::fail(const std::string& reason) const { throw std::runtime_error(name_ + ": " + reason + "."); }

void Kernel::check(ort::Status* status) const {
  if (!status) return;
  const std::string text = api_.GetErrorMessage(status);
  api_.ReleaseStatus(status);
  fail(text);
}

Kernel::Tensor Kernel::tensor(const ort::Value* value) const {
  Tensor result;
  ort::TensorInfo* info = nullptr;
  check(api_.GetTensorTypeAndShape(value, &info));
  size_t count = 0;
  ort::Status* status = api_.GetDimensionsCount(info, &count);
  if (!status && count <= Shape::kMostAxes) {
    result.shape.resize(count);
    status = api_.GetDimensions(info, result.shape.data(), count);
  }
  api_.ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  if (count > Shape::kMostAxes) fail("a tensor has " + std::to_string(count) + " axes, more than any known model");
  check(api_.GetTensorMutableData(const_cast<ort::Value*>(value), &result.data));
  return result;
}

Kernel::Tensor Kernel::input(const ort::KernelContext* context, int index) const {
  const ort::Value* value = nullptr;
  check(api_.KernelContext_GetInput(context, static_cast<size_t>(index), &value));
  if (!value) fail("input " + std::to_string(index) + " is missing");
  return tensor(value);
}

void* Kernel::output(ort::KernelContext* context, int index, const Shape& shape) const {
  ort::Value* value = nullptr;
  check(api_.KernelContext_GetOutput(context, static_cast<size_t>(index), shape.data(), shape.size(), &value));
  if (!value) return nullptr;  // an optional output that nobody asked for
  void* data = nullptr;
  check(api_.GetTensorMutableData(value, &data));
  return data;
}

Kernel::Kernel(const ort::Api& api, const Operator& op, const ort::KernelInfo* info)
    : api_(api), op_(op), name_(op.name()), arguments_(arguments_of(op)) {
  path_ = choose_path();
  if (!path_) {
    std::string names;
    for (const Path* const* path = available_paths(); *path; ++path) {
      names += (names.empty() ? "" : ", ") + std::string((*path)->name);
    }
    const char* wanted = std::getenv("LAUREL_ISA");
    fail("LAUREL_ISA = " + std::string(wanted ? wanted : "") + " is not available here; expected one of " + names);
  }
  const std::vector<std::string> names = op.inputs();
  size_t inputs = 0;
  check(api_.KernelInfo_GetInputCount(info, &inputs));
  check(api_.KernelInfo_GetOutputCount(info, &outputs_));
  if (inputs != names.size()) {
    std::string expected;
    for (const std::string& name : names) expected += (expected.empty() ? "" : ", ") + name;
    fail("the node has " + std::to_string(inputs) + " inputs, expected " + std::to_string(names.size()) + ": " +
         expected);
  }
  first_previous_ = static_cast<int>(names.size()) - op.previous;

  ort::TypeInfo* type_info = nullptr;
  check(api_.KernelInfo_GetInputTypeInfo(info, 0, &type_info));
  const ort::TensorInfo* tensor_info = nullptr;
  ort::ElementType element = ort::kUndefined;
  ort::Status* status = api_.CastTypeInfoToTensorInfo(type_info, &tensor_info);
  if (!status && tensor_info) status = api_.GetTensorElementType(tensor_info, &element);
  api_.ReleaseTypeInfo(type_info);
  check(status);
  switch (element) {
    case ort::kFloat: type_ = Type::kFloat; break;
    case ort::kFloat16: type_ = Type::kFloat16; break;
    case ort::kBFloat16: type_ = Type::kBFloat16; break;
    case ort::kDouble: type_ = Type::kDouble; break;
    case ort::kUInt8: storage_ = Storage::kUnsignedBytes; break;  // an operator's signature says whether it takes bytes
    case ort::kInt8: storage_ = Storage::kSignedBytes; break;
    default:
      fail("element type " + std::to_string(element) +
           " is not supported; expected float32, float16, bfloat16 or float64");
  }
  prepare_constants(info);
  if (op_.quantized) prepare_quantizers(info);
  check(api_.KernelInfoGetAllocator(info, ort::kDefaultMemory, &allocator_));
}

Kernel::~Kernel() {
  if (allocator_) api_.ReleaseAllocator(allocator_);
}

void Kernel::prepare_constants(const ort::KernelInfo* info) {
  if (op_.norm()) {
    if (ort::Status* status = api_.KernelInfoGetAttribute_float(info, "epsilon", &epsilon_)) {
      api_.ReleaseStatus(status);
      epsilon_ = 1e-5f;  // the default of ONNX's own norms
    }
  }
  all_constant_ = true;
  bool factors_constant = true;
  size_t floats = 0;
  for (int parameter = 0; parameter < kParameters; ++parameter) {
    Argument& argument = arguments_[parameter];
    if (argument.index < 0) continue;
    int constant = 0;
    const ort::Value* value = nullptr;
    check(api_.KernelInfoGetConstantInput_tensor(info, static_cast<size_t>(argument.index), &constant, &value));
    argument.constant = constant && value;
    if (argument.constant) {
      Tensor found = tensor(value);
      argument.shape = found.shape;
      argument.data = found.data;
      if (!is_factor(parameter)) floats += vector_floats(argument, type_, true);
    } else {
      all_constant_ = false;
      if (is_factor(parameter)) factors_constant = false;
    }
  }
  if (type_ == Type::kDouble) return;
  float* memory = vectors_.resize(floats);
  for (int parameter = 0; parameter < kParameters; ++parameter) {
    const Argument& argument = arguments_[parameter];
    if (!argument.constant || is_factor(parameter)) continue;
    prepared_.vectors[parameter] = prepare_vector(*path_, argument, type_, true, memory);
    memory += vector_floats(argument, type_, true);
  }
  const Argument& factor = arguments_[op_.lr ? kA : kPreviousA];
  if (factor.index >= 0 && factors_constant) {
    const size_t axis = op_.lr ? 0 : 1;
    const int64_t width = factor.shape.size() > axis ? factor.shape[axis] : 0;
    const std::string reason = factor_misfit(op_, arguments_, width);
    if (!reason.empty()) fail(reason);
    float* factors = factors_.resize(factor_floats(*path_, op_, arguments_, width));
    prepare_factors(*path_, op_, arguments_, type_, width, factors, &prepared_);
    factors_ready_ = true;
  }
}

// The scales and zero points, which are the last inputs of an operator on bytes.
void Kernel::prepare_quantizers(const ort::KernelInfo* info) {
  const std::vector<std::string> names = op_.inputs();
  const size_t first = names.size() - 6;
  for (size_t i = first; i < names.size(); ++i) {
    int constant = 0;
    const ort::Value* value = nullptr;
    check(api_.KernelInfoGetConstantInput_tensor(info, i, &constant, &value));
    if (!constant || !value) fail(names[i] + " is computed, expected a constant");
    const Tensor found = tensor(value);
    if (count_elements(found.shape) != 1) fail(names[i] + " has shape " + to_text(found.shape) + ", expected a scalar");
    Quantizer& quantizer = quantizers_[(i - first) / 2];
    if ((i - first) % 2 == 0) {
      quantizer.scale = *static_cast<const float*>(found.data);
    } else {
      quantizer.zero = storage_ == Storage::kSignedBytes ? *static_cast<const int8_t*>(found.data)
                                                         : *static_cast<const uint8_t*>(found.data);
    }
  }
}

void Kernel::compute(ort::KernelContext* context) const {
  Job job;
  const Tensor x = input(context, 0);
  const Tensor f = input(context, 1);
  const size_t axes = x.shape.size();
  if (op_.spatial ? axes != static_cast<size_t>(op_.spatial) + 2 : axes == 0) {
    fail("x has shape " + to_text(x.shape) + ", expected " +
         (op_.spatial ? std::to_string(op_.spatial + 2) + " axes, channels on axis 1" : "at least one axis"));
  }
  if (f.shape != x.shape) fail("f has shape " + to_text(f.shape) + ", expected x's shape " + to_text(x.shape));
  const void* previous[kMaxPrevious] = {};
  for (int j = 0; j < op_.previous; ++j) {
    const Tensor tensor = input(context, first_previous_ + j);
    if (tensor.shape != x.shape) {
      fail("previous_" + std::to_string(j + 1) + " has shape " + to_text(tensor.shape) + ", expected x's shape " +
           to_text(x.shape));
    }
    previous[j] = tensor.data;
  }
  const size_t axis = op_.spatial ? 1 : axes - 1;
  job.type = type_;
  job.width = x.shape[axis];
  job.rows = job.inner = 1;
  for (size_t i = 0; i < axis; ++i) job.rows *= x.shape[i];
  for (size_t i = axis + 1; i < axes; ++i) job.inner *= x.shape[i];

  Arguments changed;
  if (!all_constant_) {
    changed = arguments_;  // what may change between runs
    for (Argument& argument : changed) {
      if (argument.index < 0 || argument.constant) continue;
      const Tensor tensor = input(context, argument.index);
      argument.shape = tensor.shape;
      argument.data = tensor.data;
    }
  }
  const Arguments& arguments = all_constant_ ? arguments_ : changed;
  if (!all_constant_ || checked_width_.load(std::memory_order_relaxed) != job.width) {
    const std::string reason = misfit(op_, arguments, job.width);
    if (!reason.empty()) fail(reason);
    checked_width_.store(job.width, std::memory_order_relaxed);
  }

  job.y = output(context, 0, x.shape);
  job.sum = outputs_ > 1 ? output(context, 1, x.shape) : nullptr;
  if (job.rows * job.width * job.inner == 0) return;
  if (!op_.spatial) job.inner = 0;

  Loan loan{&api_, allocator_};
  job.allocator = &loan;
  job.allocate = borrow;
  job.release = give_back;
  job.x = x.data;
  job.f = f.data;
  run(context, &job, arguments, previous);
}

// Fills in the rest of the job: what was prepared at creation, and what may change between runs in borrowed memory.
void Kernel::run(ort::KernelContext* context, Job* job, const Arguments& arguments,
                 const void* const* previous) const {
  job->epilogue = op_.epilogue;
  job->epsilon = epsilon_;
  job->storage = storage_;
  std::copy(quantizers_, quantizers_ + 3, job->quantizers);
  Prepared prepared = prepared_;
  const bool factors = op_.lr || (op_.previous && op_.low_rank_previous);
  size_t floats = 0;
  if (type_ != Type::kDouble && !all_constant_) {
    for (int parameter = 0; parameter < kParameters; ++parameter) {
      const Argument& argument = arguments[parameter];
      if (argument.index < 0 || argument.constant || is_factor(parameter)) continue;
      floats += vector_floats(argument, type_, false);
    }
    if (factors && !factors_ready_) floats += factor_floats(*path_, op_, arguments, job->width);
  }
  const Borrowed borrowed(job->allocator, floats * sizeof(float));
  if (type_ == Type::kDouble) {
    describe_factors(op_, arguments, &prepared);
  } else if (!all_constant_) {
    auto* memory = static_cast<float*>(borrowed.memory);
    for (int parameter = 0; parameter < kParameters; ++parameter) {
      const Argument& argument = arguments[parameter];
      if (argument.index < 0 || argument.constant || is_factor(parameter)) continue;
      prepared.vectors[parameter] = prepare_vector(*path_, argument, type_, false, memory);
      memory += vector_floats(argument, type_, false);
    }
    if (factors && !factors_ready_) {
      prepare_factors(*path_, op_, arguments, type_, job->width, memory, &prepared);
    }
  }

  auto vector = [&](Parameter parameter, const Repeated& otherwise) {
    const Vector& found = prepared.vectors[parameter];
    return found.data ? found : Vector{otherwise.values, 0};
  };
  job->alpha = vector(kAlpha, kOnes);
  job->beta = vector(kBeta, kOnes);
  job->bias = vector(kBias, kNoBias);
  job->biased = op_.bias;
  job->scale = vector(kScale, kOnes);
  job->offset = vector(kOffset, kZeros);
  for (int parameter = 0; parameter < kParameters; ++parameter) job->raw[parameter] = arguments[parameter].data;
  if (type_ == Type::kDouble) {
    job->alpha.stride = op_.rw && count_elements(arguments[kAlpha].shape) > 1;
    job->beta.stride = op_.rw && count_elements(arguments[kBeta].shape) > 1;
    job->bias.stride = job->scale.stride = job->offset.stride = 1;
  }
  const float* gamma = prepared.vectors[kGamma].data;
  auto add_product = [&](const void* source, float scale) {
    const int p = job->products++;
    job->product[p] = {source, scale, prepared.rank[p], prepared.down[p]};
  };
  if (op_.lr) add_product(job->x, 1.0f);
  for (int j = 0; j < op_.previous; ++j) {
    const float scale = gamma ? gamma[j] : 1.0f;
    if (op_.low_rank_previous) {
      add_product(previous[j], scale);
    } else {
      job->gamma[job->previous] = scale;
      job->previous_x[job->previous++] = previous[j];
    }
  }
  job->rank = prepared.total_rank;
  job->up = prepared.up;
  run_tasks(context, job);
}

void Kernel::run_tasks(ort::KernelContext* context, Job* job) const {
  struct Shared {
    const Job* job;
    void (*run)(const Job& job, int64_t task);
  };
  Shared shared{job, type_ == Type::kDouble ? run_double : path_->run};
  type_ == Type::kDouble ? plan_double(job) : path_->plan(job);
  if (job->tasks == 1) return shared.run(*job, 0);
  auto task = [](void* data, size_t index) {
    const auto* from = static_cast<const Shared*>(data);
    from->run(*from->job, static_cast<int64_t>(index));
  };
  // Each task a batch of its own: threads take them as they come free, and the caller has begun before others wake up.
  const size_t tasks = static_cast<size_t>(job->tasks);
  alignas(64) float between[kSharedFloats];
  job->shared = between;
  for (job->phase = 0; job->phase < job->phases; ++job->phase) {
    check(api_.KernelContext_ParallelFor(context, static_cast<ort::Task>(task), tasks, tasks,
                                         static_cast<void*>(&shared)));
  }
}

}  // namespace laurel
