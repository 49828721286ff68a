"""Kunlun in plain PyTorch: the twin with which the JAX model is compared.

Written from the model's equations, padded and masked, without custom kernels: to be read alongside the paper, and to be
right rather than fast. Nothing else in the package imports torch. Start with `model.Kunlun`; `batch.from_packed` makes
its input from a packed batch, `weights` carries parameters both ways, `parity` compares the two part by part.
"""
