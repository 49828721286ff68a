"""Kunlun (arXiv 2602.10016) in JAX: a click-through-rate model over context features and event histories."""

__version__ = "0.1.0"
