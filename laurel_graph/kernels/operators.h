// The operators of ai.laurel: every name of laurel_graph/opset/schema.py, which explains them.
#pragma once

#include <string>
#include <vector>

namespace laurel {

constexpr int kMaxPrevious = 8;

enum class Epilogue { kNone, kRelu, kLayerNorm, kRMSNorm };

constexpr bool is_norm(Epilogue epilogue) {
  return epilogue == Epilogue::kLayerNorm || epilogue == Epilogue::kRMSNorm;
}

struct Operator {
  bool rw = false;
  bool lr = false;
  int previous = 0;
  bool low_rank_previous = false;
  bool bias = false;
  int spatial = 0;  // axes behind the channel axis; 0: the feature axis is the last one
  Epilogue epilogue = Epilogue::kNone;
  bool quantized = false;  // x, f and y are bytes

  bool norm() const { return is_norm(epilogue); }
  std::string name() const;
  // Input names in order.
  std::vector<std::string> inputs() const;
  int outputs() const { return norm() ? 2 : 1; }
};

// All of them, in a fixed order.
std::vector<Operator> all_operators();

}  // namespace laurel
