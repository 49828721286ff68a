"""Comparisons: a file ``NAME.py`` holds one `experiments.compare.Comparison` as ``COMPARISON``."""
