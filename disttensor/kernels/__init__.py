"""Kernels: numpy arrays in, arrays out. They know nothing of tensors, graphs or processes.

Every kernel writes into its first argument, `out`, which the caller has allocated C-contiguous. Results never depend
on the number of threads. Modules: `convolution`, `pooling`, `philox` (random numbers), `indexing`, `special`.
"""
