"""Doors to the pass managers of others: the same passes as passes of torch.fx and of onnx_ir."""
