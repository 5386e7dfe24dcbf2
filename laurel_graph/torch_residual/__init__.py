"""LAuReL residuals in torch: the module, its sum with hand-written gradients, and the native kernels behind it."""
