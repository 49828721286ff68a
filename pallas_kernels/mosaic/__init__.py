"""What the Mosaic GPU kernels share: the work list, the streaming kernel of each generation of chips, its scores."""
