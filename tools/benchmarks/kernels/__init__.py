"""The fused kernels beside the function bodies, ONNX Runtime's own operators and the machine's bound."""
