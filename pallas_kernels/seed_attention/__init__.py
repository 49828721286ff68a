"""Seed attention; call `pallas_kernels.seed_attention.api.seed_attention`."""
