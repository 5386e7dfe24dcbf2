"""ONNX's single-node cases through the importer."""
