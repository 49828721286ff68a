"""Importing a few files of a checkout, without installing it and without what else its packages import."""

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def required(checkout: Path, file: str, url: str) -> Path:
    """The path of a file of the checkout.

    Raises:
      ValueError: it is not there; the message says what to type.
    """
    path = checkout / file
    if not path.is_file():
        name = url.rpartition("/")[2]
        raise ValueError(f"{path}: no such file; type `git clone {url}`, then name that folder: --checkout {name}")
    return path


@contextlib.contextmanager
def importing(checkout: Path, package: str) -> Iterator[None]:
    """Inside, `package` is imported from the checkout; afterwards all is as it was, and what was imported still works.

    Modules put into `sys.modules` under a name of the package stand in for those of the checkout, and are gone, too.
    """

    def taken_out() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.split(".")[0] == package]
        return {name: sys.modules.pop(name) for name in names}

    before, path = taken_out(), list(sys.path)
    sys.path.insert(0, str(checkout))
    importlib.invalidate_caches()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes in other people's docstrings
            yield
    finally:
        sys.path[:] = path
        taken_out()
        sys.modules.update(before)


def module_at(path: Path, name: str) -> types.ModuleType:
    """The module in that file, whatever package it lies in."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(name: str, **members: Any) -> None:
    """Puts a module of these members into `sys.modules`; for use inside of `importing`."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
