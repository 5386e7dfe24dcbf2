"""One ground for ONNX files: read, walk, tensors, types and shapes, order, editing, weight files."""
