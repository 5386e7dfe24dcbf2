#include "operators.h"

namespace laurel {

std::string Operator::name() const {
  std::string text = "Laurel";
  if (rw) text += "_RW";
  if (lr) text += "_LR";
  if (previous) text += (low_rank_previous ? "_PAL" : "_PA") + std::to_string(previous);
  if (bias) text += "_Bias";
  if (spatial) text += "_" + std::to_string(spatial) + "d";
  if (epilogue == Epilogue::kRelu) text += "_Relu";
  if (epilogue == Epilogue::kLayerNorm) text += "_LayerNorm";
  if (epilogue == Epilogue::kRMSNorm) text += "_RMSNorm";
  if (quantized) text += "_Quantized";
  return text;
}

std::vector<std::string> Operator::inputs() const {
  std::vector<std::string> names = {"x", "f"};
  if (rw) names.insert(names.end(), {"alpha", "beta"});
  if (lr) names.insert(names.end(), {"A", "B"});
  if (previous) names.push_back("gamma");
  if (previous && low_rank_previous) names.insert(names.end(), {"previous_A", "previous_B"});
  if (bias) names.push_back("bias");
  if (norm()) names.push_back("scale");
  if (epilogue == Epilogue::kLayerNorm) names.push_back("offset");
  for (const char* array : {"x", "f", "y"}) {
    if (quantized) names.insert(names.end(), {std::string(array) + "_scale", std::string(array) + "_zero_point"});
  }
  for (int j = 1; j <= previous; ++j) names.push_back("previous_" + std::to_string(j));
  return names;
}

std::vector<Operator> all_operators() {
  std::vector<Operator> residuals;
  for (bool rw : {false, true}) {
    for (bool lr : {false, true}) {
      if (rw || lr) residuals.push_back({rw, lr});
      for (int k = 1; k <= kMaxPrevious; ++k) {
        for (bool low_rank : {false, true}) residuals.push_back({rw, lr, k, low_rank});
      }
    }
  }
  std::vector<Operator> operators;
  for (Operator op : residuals) {
    for (bool bias : {false, true}) {
      for (Epilogue epilogue : {Epilogue::kNone, Epilogue::kLayerNorm, Epilogue::kRMSNorm}) {
        op.bias = bias, op.spatial = 0, op.epilogue = epilogue;
        operators.push_back(op);
      }
    }
    for (int spatial : {1, 2, 3}) {
      for (Epilogue epilogue : {Epilogue::kNone, Epilogue::kRelu}) {
        op.bias = false, op.spatial = spatial, op.epilogue = epilogue;
        operators.push_back(op);
      }
    }
  }
  for (bool rw : {false, true}) {
    for (Epilogue epilogue : {Epilogue::kNone, Epilogue::kRelu}) {
      Operator op{rw, true};
      op.epilogue = epilogue, op.quantized = true;
      operators.push_back(op);
    }
  }
  return operators;
}

}  // namespace laurel
