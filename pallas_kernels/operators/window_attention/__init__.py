"""Sliding-window self-attention; call `pallas_kernels.window_attention`."""
