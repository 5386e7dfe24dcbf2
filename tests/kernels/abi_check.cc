// Compiles only if laurel_graph/kernels/ort_api.h agrees with the official C API.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "ort_api.h"

namespace ours = laurel::ort;

static_assert(ORT_API_VERSION >= ours::kApiVersion, "these headers are older than the API version asked for");

// Each slot stands where the official table has the entry of that name, and takes as many arguments.
template <typename Function>
struct Arguments;
template <typename Result, typename... Parameters>
struct Arguments<Result (*)(Parameters...)> {
  static constexpr size_t count = sizeof...(Parameters);
};
template <typename Result, typename... Parameters>
struct Arguments<Result (*)(Parameters...) noexcept> {
  static constexpr size_t count = sizeof...(Parameters);
};

using namespace laurel::ort;
#define CHECK_SLOT(number, name, result, parameters)                                                       \
  static_assert(offsetof(::OrtApi, name) == (number) * sizeof(void*), #name " has another slot");          \
  static_assert(Arguments<decltype(::OrtApi::name)>::count == Arguments<result(*) parameters>::count,      \
                #name " takes another number of arguments");                                               \
  static_assert((number) < kSlots, #name " lies behind the end of our table");
LAUREL_ORT_SLOTS(CHECK_SLOT)

static_assert(offsetof(::OrtApiBase, GetApi) == offsetof(ours::ApiBase, GetApi), "GetApi");
static_assert(offsetof(::OrtApiBase, GetVersionString) == offsetof(ours::ApiBase, GetVersionString), "GetVersionString");

#define CHECK_FIELD(name)                                                                                  \
  static_assert(offsetof(::OrtCustomOp, name) == offsetof(ours::CustomOp, name), #name " lies elsewhere"); \
  static_assert(sizeof(::OrtCustomOp::name) == sizeof(ours::CustomOp::name), #name " has another size");
CHECK_FIELD(version)
CHECK_FIELD(CreateKernel)
CHECK_FIELD(GetName)
CHECK_FIELD(GetExecutionProviderType)
CHECK_FIELD(GetInputType)
CHECK_FIELD(GetInputTypeCount)
CHECK_FIELD(GetOutputType)
CHECK_FIELD(GetOutputTypeCount)
CHECK_FIELD(KernelCompute)
CHECK_FIELD(KernelDestroy)
CHECK_FIELD(GetInputCharacteristic)
CHECK_FIELD(GetOutputCharacteristic)
CHECK_FIELD(GetInputMemoryType)
CHECK_FIELD(GetVariadicInputMinArity)
CHECK_FIELD(GetVariadicInputHomogeneity)
CHECK_FIELD(GetVariadicOutputMinArity)
CHECK_FIELD(GetVariadicOutputHomogeneity)
CHECK_FIELD(CreateKernelV2)
CHECK_FIELD(KernelComputeV2)
CHECK_FIELD(InferOutputShapeFn)
CHECK_FIELD(GetStartVersion)
CHECK_FIELD(GetEndVersion)
CHECK_FIELD(GetMayInplace)
CHECK_FIELD(ReleaseMayInplace)
CHECK_FIELD(GetAliasMap)
CHECK_FIELD(ReleaseAliasMap)

static_assert(int(kFail) == ORT_FAIL && int(kInvalidArgument) == ORT_INVALID_ARGUMENT, "error codes");
static_assert(int(kUndefined) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, "element types");
static_assert(int(kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "element types");
static_assert(int(kFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "element types");
static_assert(int(kDouble) == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, "element types");
static_assert(int(kUInt8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "element types");
static_assert(int(kInt8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, "element types");
static_assert(int(kBFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "element types");
static_assert(int(kRequired) == INPUT_OUTPUT_REQUIRED && int(kOptional) == INPUT_OUTPUT_OPTIONAL, "characteristics");
static_assert(int(kVariadic) == INPUT_OUTPUT_VARIADIC, "characteristics");
static_assert(int(kDefaultMemory) == OrtMemTypeDefault, "memory types");
