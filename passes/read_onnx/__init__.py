"""From ONNX models to the neutral graph view: graphs, operators that hide an add, roles."""
