"""What the Mosaic GPU kernels share: the work list, the streaming kernel of each chip generation, and its scores."""
