"""What the Triton kernels share: one streaming kernel forward and one backward, for GPUs of capability 8.0 and above.

`triton` and `jax_triton` are imported where a kernel is built, not with this package.
"""
