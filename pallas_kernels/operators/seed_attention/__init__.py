"""Seed attention; call `pallas_kernels.seed_attention`."""
