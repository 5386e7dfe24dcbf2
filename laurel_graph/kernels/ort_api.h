// The few entries of ONNX Runtime's C API that the kernels use.
//
// ONNX Runtime hands out its C API as one table of function pointers that only ever grows at its end, and a custom
// operator is a struct of callbacks that grows the same way. So a slot number and a signature are all it takes: no
// header of ONNX Runtime is needed to build, and one binary serves every release from the version asked for below.
// tests/kernels/abi_check.cc compares each slot, field and constant with the official headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace laurel::ort {

// The oldest C API that has every slot used here (ONNX Runtime 1.18).
constexpr uint32_t kApiVersion = 18;

struct CustomOp;
struct Status;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct SessionOptions;
struct Domain;
struct Allocator;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kFloat16 = 10,
  kDouble = 11,
  kBFloat16 = 16
};
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kDefaultMemory = 0 };

using Task = void (*)(void* data, size_t index);

// SLOT(number, name, result, parameters); the names are the official ones.
#define LAUREL_ORT_SLOTS(SLOT)                                                                                     \
  SLOT(0, CreateStatus, Status*, (ErrorCode code, const char* text))                                               \
  SLOT(2, GetErrorMessage, const char*, (const Status* status))                                                    \
  SLOT(26, CreateCustomOpDomain, Status*, (const char* name, Domain** out))                                        \
  SLOT(27, CustomOpDomain_Add, Status*, (Domain * domain, const CustomOp* op))                              \
  SLOT(28, AddCustomOpDomain, Status*, (SessionOptions * options, Domain* domain))                                 \
  SLOT(51, GetTensorMutableData, Status*, (Value * value, void** out))                                             \
  SLOT(55, CastTypeInfoToTensorInfo, Status*, (const TypeInfo* info, const TensorInfo** out))                      \
  SLOT(60, GetTensorElementType, Status*, (const TensorInfo* info, ElementType* out))                              \
  SLOT(61, GetDimensionsCount, Status*, (const TensorInfo* info, size_t* out))                                     \
  SLOT(62, GetDimensions, Status*, (const TensorInfo* info, int64_t* dims, size_t count))                          \
  SLOT(63, GetSymbolicDimensions, Status*, (const TensorInfo* info, const char** names, size_t count))             \
  SLOT(65, GetTensorTypeAndShape, Status*, (const Value* value, TensorInfo** out))                                 \
  SLOT(75, AllocatorAlloc, Status*, (Allocator * allocator, size_t size, void** out))                              \
  SLOT(76, AllocatorFree, Status*, (Allocator * allocator, void* memory))                                          \
  SLOT(85, KernelInfoGetAttribute_float, Status*, (const KernelInfo* info, const char* name, float* out))          \
  SLOT(90, KernelContext_GetInput, Status*, (const KernelContext* context, size_t index, const Value** out))       \
  SLOT(91, KernelContext_GetOutput, Status*,                                                                       \
       (KernelContext * context, size_t index, const int64_t* dims, size_t count, Value** out))                    \
  SLOT(93, ReleaseStatus, void, (Status * status))                                                                 \
  SLOT(98, ReleaseTypeInfo, void, (TypeInfo * info))                                                               \
  SLOT(99, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo * info))                                               \
  SLOT(132, ReleaseAllocator, void, (Allocator * allocator))                                                       \
  SLOT(230, KernelInfo_GetInputCount, Status*, (const KernelInfo* info, size_t* out))                              \
  SLOT(231, KernelInfo_GetOutputCount, Status*, (const KernelInfo* info, size_t* out))                             \
  SLOT(234, KernelInfo_GetInputTypeInfo, Status*, (const KernelInfo* info, size_t index, TypeInfo** out))          \
  SLOT(249, KernelInfoGetConstantInput_tensor, Status*,                                                            \
       (const KernelInfo* info, size_t index, int* is_constant, const Value** out))                                \
  SLOT(268, ShapeInferContext_GetInputTypeShape, Status*,                                                          \
       (const ShapeContext* context, size_t index, TensorInfo** out))                                              \
  SLOT(270, ShapeInferContext_SetOutputTypeShape, Status*,                                                         \
       (const ShapeContext* context, size_t index, const TensorInfo* info))                                        \
  SLOT(271, SetSymbolicDimensions, Status*, (TensorInfo * info, const char** names, size_t count))                 \
  SLOT(274, KernelContext_ParallelFor, Status*,                                                                    \
       (const KernelContext* context, Task task, size_t total, size_t batches, void* data))                        \
  SLOT(278, KernelInfoGetAllocator, Status*, (const KernelInfo* info, MemoryType type, Allocator** out))

constexpr size_t kSlots = 279;

// The table itself; each official name becomes a member function.
struct Api {
  using Entry = void (*)();
  Entry entries[kSlots];

#define LAUREL_ORT_SLOT(number, name, result, parameters)                            \
  template <typename... Arguments>                                                   \
  result name(Arguments... arguments) const {                                        \
    return reinterpret_cast<result(*) parameters>(entries[number])(arguments...);    \
  }
  LAUREL_ORT_SLOTS(LAUREL_ORT_SLOT)
#undef LAUREL_ORT_SLOT
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// The callbacks of one operator, as of kApiVersion.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace laurel::ort
