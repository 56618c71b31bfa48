"""Kernels: numpy arrays in, arrays out. They know nothing of tensors, graphs or processes.

Kernels write into their first argument, `out`, which the caller has allocated. Results never depend on the number of
threads. Convolutions: `convolution` (on `convolution_plan` and `convolution_ir`), `depthwise`, `pooling`, on `windows`;
products and sums: `gemm`, `products`, `sums`; sequences: `recurrent`, `gates`, `attention`; `normalization`, `moments`;
random numbers: `philox`, `normal`; `indexing` and `special`; generated loops: `codegen`, of
`loop`s with `elementary` functions, by `scalar_ir`. Around them: `ir`
(which writes LLVM IR), `machine` (compiles it), `native`, `_jit` (numba), `blas` (threads), `disk_cache`, `denormals`.
"""
