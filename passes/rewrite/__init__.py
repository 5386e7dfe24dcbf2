"""Puts LAuReL residuals into graphs and takes them out again: torch.fx, ONNX, export, heads."""
