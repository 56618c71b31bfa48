"""Kernels: numpy arrays in, arrays out. They know nothing of tensors, graphs or processes.

Kernels write into their first argument, `out`, which the caller has allocated. Results never depend on the number of
threads. Convolutions: `convolution` (on `convolution_plan` and `convolution_ir`), `depthwise`, `pooling`, on `windows`;
products: `gemm`, `products`; sequences: `recurrent`, `gates`, `attention`; statistics of columns: `moments`; random
numbers: `philox`, `normal`; `indexing`, `copying` and `special`. Generated loops are described by `loop`, written by
`codegen` on `scalar_ir` with `elementary` functions (`exponential`, `trigonometric`, `hyperbolic`, `remainders`, on
`floating`), and bound by `generated`; `reductions`, `softmax`, `crossentropy` and `normalization` are such loops.
Around them: `ir` (which writes LLVM IR), `machine` (compiles it), `native`, `_jit` (numba), `blas` (threads),
`disk_cache`, `denormals`.
"""
