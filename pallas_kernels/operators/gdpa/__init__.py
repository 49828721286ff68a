"""gdpa: attention with a pointwise activation; call `pallas_kernels.gdpa`."""
