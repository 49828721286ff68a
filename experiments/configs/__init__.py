"""Presets: ``configs/MODEL/PRESET.py`` holds one `TrainConfig` as ``CONFIG``; its docstring tells cost and score.

A file put there is a preset, and nothing else names it. One that lies elsewhere is run by its path.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from kunlun_jax.training.config import TrainConfig


def from_file(path: Path) -> ModuleType:
    """A preset that lies anywhere, as a module named as its file.

    Raises:
      ValueError: no such file, another module has the name, or it holds no `TrainConfig` as ``CONFIG``.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a preset is one of {list(PRESETS)} or the path of a Python file")
    if path.stem in sys.modules:
        raise ValueError(f"{path}: a module called {path.stem!r} is there already; give the file another name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: the config of a model in the same file is found again by the name of its module.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "CONFIG", None), TrainConfig):
        raise ValueError(f"{path}: a preset must hold a kunlun_jax.training.config.TrainConfig called CONFIG")
    return module


def described(module: ModuleType) -> tuple[str, TrainConfig]:
    """First line of a preset's docstring, and its config."""
    return (module.__doc__ or "").splitlines()[0], module.CONFIG


def _listed(folder: Path) -> Iterable[tuple[str, tuple[str, TrainConfig]]]:
    for file in sorted(folder.glob("*/[!_]*.py")):
        model, preset = file.parent.name, file.stem
        yield f"{model}/{preset}", described(importlib.import_module(f"{__name__}.{model}.{preset}"))


PRESETS: dict[str, tuple[str, TrainConfig]] = dict(_listed(Path(__file__).parent))
"""MODEL/PRESET -> first line of the file's docstring, and the config."""
