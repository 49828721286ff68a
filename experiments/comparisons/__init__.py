"""Comparisons: a file ``NAME.py`` holds one `experiments.compare.Comparison` as ``COMPARISON``."""

from pathlib import Path

NAMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))
"""The files that there are."""
