#include "arguments.h"

namespace laurel {

namespace {

const char* const kNames[kParameters] = {"alpha",      "beta",       "A",    "B",     "gamma",
                                         "previous_A", "previous_B", "bias", "scale", "offset"};

std::string mismatch(Parameter parameter, const Argument& argument, const std::string& expected) {
  return std::string(kNames[parameter]) + " has shape " + to_text(argument.shape) + ", expected " + expected;
}

bool present(const Arguments& arguments, Parameter parameter) { return arguments[parameter].index >= 0; }

int64_t rank_of(const Arguments& arguments, Parameter down) {
  const Shape& shape = arguments[down].shape;
  return shape.empty() ? 0 : shape[shape.size() - 1];
}

// A pair (D, r) and (r, D), or k of them.
std::string pair_misfit(const Arguments& arguments, Parameter down, Parameter up, int k, int64_t width) {
  const Argument &a = arguments[down], &b = arguments[up];
  const int64_t rank = rank_of(arguments, down);
  if (a.shape != (k ? Shape{k, width, rank} : Shape{width, rank})) {
    const std::string d = std::to_string(width);
    return mismatch(down, a, "(" + (k ? std::to_string(k) + ", " : "") + d + ", r): x has " + d + " features");
  }
  const Shape expected = k ? Shape{k, rank, width} : Shape{rank, width};
  if (b.shape == expected) return "";
  return mismatch(up, b, to_text(expected) + " to go with " + kNames[down] + " of shape " + to_text(a.shape));
}

}  // namespace

std::string to_text(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

int64_t count_elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

Arguments arguments_of(const Operator& op) {
  Arguments arguments;
  const std::vector<std::string> inputs = op.inputs();
  for (int parameter = 0; parameter < kParameters; ++parameter) {
    auto found = std::find(inputs.begin(), inputs.end(), kNames[parameter]);
    if (found != inputs.end()) arguments[parameter].index = static_cast<int>(found - inputs.begin());
  }
  return arguments;
}

std::string factor_misfit(const Operator& op, const Arguments& arguments, int64_t width) {
  std::string reason;
  if (present(arguments, kA)) reason = pair_misfit(arguments, kA, kB, 0, width);
  if (reason.empty() && present(arguments, kPreviousA)) {
    reason = pair_misfit(arguments, kPreviousA, kPreviousB, op.previous, width);
  }
  return reason;
}

std::string misfit(const Operator& op, const Arguments& arguments, int64_t width) {
  const std::string vector = "(" + std::to_string(width) + ",)";
  for (Parameter parameter : {kAlpha, kBeta}) {
    const Argument& argument = arguments[parameter];
    const bool scalar = argument.shape.size() <= 1 && count_elements(argument.shape) == 1;
    if (present(arguments, parameter) && !scalar && argument.shape != Shape{width}) {
      return mismatch(parameter, argument, "(), (1,) or " + vector);
    }
  }
  for (Parameter parameter : {kBias, kScale, kOffset}) {
    if (present(arguments, parameter) && arguments[parameter].shape != Shape{width}) {
      return mismatch(parameter, arguments[parameter], vector);
    }
  }
  if (present(arguments, kGamma) && arguments[kGamma].shape != Shape{op.previous}) {
    return mismatch(kGamma, arguments[kGamma], "(" + std::to_string(op.previous) + ",)");
  }
  return factor_misfit(op, arguments, width);
}

float* Buffer::resize(size_t floats) {
  data_.reset(static_cast<float*>(::operator new[](std::max<size_t>(floats, 1) * sizeof(float), std::align_val_t(64))));
  return data_.get();
}

size_t vector_floats(const Argument& argument, Type type, bool copy) {
  const int64_t count = count_elements(argument.shape);
  if (count == 1) return kRepeat;
  return copy || type != Type::kFloat ? static_cast<size_t>(count + 15) / 16 * 16 : 0;
}

Vector prepare_vector(const Path& path, const Argument& argument, Type type, bool copy, float* memory) {
  const int64_t count = count_elements(argument.shape);
  if (count == 1) {
    path.convert(argument.data, type, 1, memory);
    std::fill(memory + 1, memory + kRepeat, memory[0]);
    return {memory, 0};
  }
  if (!copy && type == Type::kFloat) return {static_cast<const float*>(argument.data), 1};
  path.convert(argument.data, type, count, memory);
  return {memory, 1};
}

size_t factor_floats(const Path& path, const Operator& op, const Arguments& arguments, int64_t width) {
  const bool channels = op.spatial > 0;
  size_t floats = 0;
  int64_t total = 0;
  auto add = [&](int64_t rank, int64_t count) {
    floats += count * ((path.down_size(channels, width, rank) + 15) / 16 * 16);
    total += count * rank;
  };
  if (present(arguments, kA)) add(rank_of(arguments, kA), 1);
  if (present(arguments, kPreviousA)) add(rank_of(arguments, kPreviousA), op.previous);
  return floats + path.up_size(channels, width, total);
}

void describe_factors(const Operator& op, const Arguments& arguments, Prepared* out) {
  out->products = 0;
  if (present(arguments, kA)) out->rank[out->products++] = rank_of(arguments, kA);
  for (int j = 0; present(arguments, kPreviousA) && j < op.previous; ++j) {
    out->rank[out->products++] = rank_of(arguments, kPreviousA);
  }
  out->total_rank = 0;
  for (int p = 0; p < out->products; ++p) out->total_rank += out->rank[p];
}

void prepare_factors(const Path& path, const Operator& op, const Arguments& arguments, Type type, int64_t width,
                     float* memory, Prepared* out) {
  const bool channels = op.spatial > 0;
  describe_factors(op, arguments, out);
  float* up = memory + factor_floats(path, op, arguments, width) - path.up_size(channels, width, out->total_rank);
  out->up = up;
  int64_t first = 0;
  int product = 0;
  auto add = [&](Parameter down, Parameter up_parameter, int64_t j) {
    const int64_t rank = rank_of(arguments, down);
    const size_t skip = static_cast<size_t>(j * width * rank) * size_of(type);
    path.pack_down(channels, static_cast<const char*>(arguments[down].data) + skip, type, width, rank, memory);
    path.pack_up(channels, static_cast<const char*>(arguments[up_parameter].data) + skip, type, width, rank, first,
                 out->total_rank, up);
    out->down[product++] = memory;
    memory += (path.down_size(channels, width, rank) + 15) / 16 * 16;
    first += rank;
  };
  if (present(arguments, kA)) add(kA, kB, 0);
  for (int j = 0; present(arguments, kPreviousA) && j < op.previous; ++j) add(kPreviousA, kPreviousB, j);
}

}  // namespace laurel
