"""Presets: ``configs/MODEL/PRESET.py`` holds one `TrainConfig` as ``CONFIG``; its docstring tells cost and score.

A file put there is a preset, and nothing else names it. One that lies elsewhere is run by its path.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from kunlun_jax.training.config import TrainConfig


def described(module: ModuleType) -> tuple[str, TrainConfig]:
    """First line of a preset's docstring, and its config."""
    return (module.__doc__ or "").splitlines()[0], module.CONFIG


def _listed(folder: Path) -> Iterable[tuple[str, tuple[str, TrainConfig]]]:
    for file in sorted(folder.glob("*/[!_]*.py")):
        model, preset = file.parent.name, file.stem
        yield f"{model}/{preset}", described(importlib.import_module(f"{__name__}.{model}.{preset}"))


PRESETS: dict[str, tuple[str, TrainConfig]] = dict(_listed(Path(__file__).parent))
"""MODEL/PRESET -> first line of the file's docstring, and the config."""
