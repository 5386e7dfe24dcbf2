// What ONNX Runtime sees: the domain ai.laurel with all its operators.
#include <atomic>
#include <climits>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "kernel.h"
#include "operators.h"
#include "ort_api.h"
#include "sum.h"

#if defined(_WIN32)
#define LAUREL_EXPORT extern "C" __declspec(dllexport)
#else
#define LAUREL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace laurel {

namespace {

const ort::Api* g_api = nullptr;

// The base class comes first, so ONNX Runtime's pointer to it is a pointer to this.
struct RegisteredOperator : ort::CustomOp {
  Operator op;
  std::string name;
  int inputs = 0;
  ort::ElementType bytes = ort::kUndefined;  // of x, f and y, if the operator takes bytes
};

const RegisteredOperator& of(const ort::CustomOp* op) { return *static_cast<const RegisteredOperator*>(op); }

ort::Status* create_kernel(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
  try {
    *kernel = new Kernel(*api, of(op).op, info);
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ort::kInvalidArgument, error.what());
  }
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
  try {
    static_cast<const Kernel*>(kernel)->compute(context);
    return nullptr;
  } catch (const std::exception& error) {
    return g_api->CreateStatus(ort::kInvalidArgument, error.what());
  }
}

// Gives each unknown dim of a shape a name of its own: ONNX Runtime takes a nameless one for the size -1.
ort::Status* name_unknown_dims(ort::TensorInfo* shape, size_t axes) {
  static std::atomic<unsigned> count{0};
  std::vector<int64_t> dims(axes);
  std::vector<const char*> names(axes, nullptr);
  if (ort::Status* status = g_api->GetDimensions(shape, dims.data(), axes)) return status;
  if (ort::Status* status = g_api->GetSymbolicDimensions(shape, names.data(), axes)) return status;
  std::vector<std::string> all(axes);
  for (size_t i = 0; i < axes; ++i) {
    if (names[i]) all[i] = names[i];
    if (dims[i] < 0 && all[i].empty()) all[i] = "laurel_dim_" + std::to_string(count++);
  }
  for (size_t i = 0; i < axes; ++i) names[i] = all[i].c_str();
  return g_api->SetSymbolicDimensions(shape, names.data(), axes);
}

// y has x's shape, or f's where nothing is known of x. The sum has it too, but nobody tells here whether the node has
// that output, and ONNX Runtime takes the shape of one that is not there for memory that is not there.
ort::Status* infer_shapes(const ort::CustomOp*, ort::ShapeContext* context) {
  for (size_t input : {0, 1}) {
    ort::TensorInfo* info = nullptr;
    if (ort::Status* status = g_api->ShapeInferContext_GetInputTypeShape(context, input, &info)) return status;
    size_t axes = 0;
    if (ort::Status* status = g_api->GetDimensionsCount(info, &axes)) return status;
    if (axes == 0) continue;  // an unknown number of them
    if (ort::Status* status = name_unknown_dims(info, axes)) return status;
    return g_api->ShapeInferContext_SetOutputTypeShape(context, 0, info);
  }
  return nullptr;
}

// All inputs are one homogeneous variadic one: that is how ONNX Runtime ties their element types together, and it
// keeps the registration of hundreds of operators cheap.
RegisteredOperator make(const Operator& op) {
  RegisteredOperator made{};
  made.op = op;
  made.name = op.name();
  made.inputs = static_cast<int>(op.inputs().size());
  made.version = ort::kApiVersion;
  made.GetName = [](const ort::CustomOp* self) { return of(self).name.c_str(); };
  made.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  made.GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  made.GetInputType = [](const ort::CustomOp*, size_t) { return ort::kUndefined; };
  made.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kVariadic; };
  made.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  made.GetVariadicInputMinArity = [](const ort::CustomOp* self) { return of(self).inputs; };
  made.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 1; };
  made.GetOutputTypeCount = [](const ort::CustomOp* self) { return static_cast<size_t>(of(self).op.outputs()); };
  made.GetOutputType = [](const ort::CustomOp*, size_t) { return ort::kUndefined; };
  made.GetOutputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return index == 0 ? ort::kRequired : ort::kOptional;
  };
  made.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  made.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  made.CreateKernelV2 = create_kernel;
  made.KernelComputeV2 = compute;
  made.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  made.InferOutputShapeFn = infer_shapes;
  made.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  made.GetEndVersion = [](const ort::CustomOp*) { return INT_MAX; };
  // y may take the place of f or of x: every element is read before it is written.
  made.GetMayInplace = [](int** inputs, int** outputs) -> size_t {
    static int from[] = {1, 0}, to[] = {0, 0};
    *inputs = from;
    *outputs = to;
    return 2;
  };
  made.ReleaseMayInplace = [](int*, int*) {};
  made.GetAliasMap = [](int**, int**) -> size_t { return 0; };
  made.ReleaseAliasMap = [](int*, int*) {};
  return made;
}

// Operators on bytes name each input's type, for inputs of several types cannot share one variadic input.
RegisteredOperator make_quantized(const Operator& op, ort::ElementType bytes) {
  RegisteredOperator made = make(op);
  made.bytes = bytes;
  made.GetInputTypeCount = [](const ort::CustomOp* self) { return static_cast<size_t>(of(self).inputs); };
  made.GetInputType = [](const ort::CustomOp* self, size_t index) {
    const std::string name = of(self).op.inputs()[index];
    const bool is_bytes = name == "x" || name == "f" || name.find("zero_point") != std::string::npos;
    return is_bytes ? of(self).bytes : ort::kFloat;
  };
  made.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  made.GetOutputType = [](const ort::CustomOp* self, size_t) { return of(self).bytes; };
  return made;
}

// Operators to register from this thread: ",name,name,", or empty for all. ONNX Runtime spends some 50 microseconds on
// each operator of a domain whenever a session is made, so who knows the model names what it needs.
thread_local std::string g_selected;

// The domain with the selected operators. Domains are few, and live as long as the process.
ort::Status* domain(ort::Domain** out) {
  static std::map<std::string, ort::Domain*> made;
  static std::deque<RegisteredOperator> operators;
  ort::Domain*& found = made[g_selected];
  if (!found) {
    ort::Domain* fresh = nullptr;
    if (ort::Status* status = g_api->CreateCustomOpDomain("ai.laurel", &fresh)) return status;
    for (const Operator& op : all_operators()) {
      if (!g_selected.empty() && g_selected.find("," + op.name() + ",") == std::string::npos) continue;
      for (ort::ElementType bytes : {ort::kUInt8, ort::kInt8}) {
        if (!op.quantized && bytes != ort::kUInt8) continue;
        operators.push_back(op.quantized ? make_quantized(op, bytes) : make(op));
        const ort::CustomOp* added = &operators.back();
        if (ort::Status* status = g_api->CustomOpDomain_Add(fresh, added)) return status;
      }
    }
    found = fresh;
  }
  *out = found;
  return nullptr;
}

}  // namespace

}  // namespace laurel

LAUREL_EXPORT laurel::ort::Status* RegisterCustomOps(laurel::ort::SessionOptions* options,
                                                     const laurel::ort::ApiBase* base) {
  using namespace laurel;
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  g_api = base->GetApi(ort::kApiVersion);  // the same table each time
  if (!g_api) {
    // No table of the version asked for; any older one can still say so.
    const ort::Api* oldest = base->GetApi(1);
    return oldest->CreateStatus(ort::kFail, "laurel_ops needs ONNX Runtime 1.18 or newer.");
  }
  ort::Domain* made = nullptr;
  if (ort::Status* status = domain(&made)) return status;
  return g_api->AddCustomOpDomain(options, made);
}

// Names (separated by commas) of the operators that RegisterCustomOps registers when called from this thread; null or
// an empty text: all of them.
LAUREL_EXPORT void laurel_select(const char* names) {
  laurel::g_selected = names && *names ? "," + std::string(names) + "," : "";
}

// The instruction set that new sessions run on, or null if LAUREL_ISA names one that this machine does not have.
LAUREL_EXPORT const char* laurel_isa() {
  const laurel::Path* path = laurel::choose_path();
  return path ? path->name : nullptr;
}

// The i-th instruction set this machine can run, best first, or null.
LAUREL_EXPORT const char* laurel_available_isa(int i) {
  const laurel::Path* const* paths = laurel::available_paths();
  for (; *paths && i > 0; --i) ++paths;
  return *paths ? (*paths)->name : nullptr;
}

// Floats of laurel::Sum::hidden.
LAUREL_EXPORT int64_t laurel_hidden_floats(const laurel::Sum* sum) {
  return static_cast<int64_t>(laurel::hidden_floats(*sum));
}

// Computes y and hidden, or the gradients. Returns whether there was memory for it.
LAUREL_EXPORT int laurel_sum(const laurel::Sum* sum) {
  try {
    sum->backward ? laurel::sum_backward(*sum) : laurel::sum_forward(*sum);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// Runs multiply-adds on the current instruction set; returns the number of floating-point operations.
LAUREL_EXPORT double laurel_multiply_adds(int64_t rounds) {
  const laurel::Path* path = laurel::choose_path();
  return path ? path->multiply_adds(rounds) : 0;
}
