"""Python files: your own presets and comparisons anywhere, named by their path; and what ours are, as a digest."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_IMPORTED: dict[Path, tuple[ModuleType, bytes]] = {}
"""Files that `load` has imported -> their module, and what was in them."""


def load(path: Path, name: str, kind: type) -> tuple[str, str, Any]:
    """What a Python file holds as `name`.

    The file is imported as a module called as the file, which finds what any module finds: what is installed, and what
    lies in the folder that the command is run from. It is imported once, however often it is asked for.

    Returns:
      Name of the module, first line of its docstring, and the object.

    Raises:
      ValueError: no such file, another module has its name, it has changed since it was imported, or it holds no `kind`
        as `name`.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a Python file that holds a {kind.__name__} called {name}")
    module, (own, content) = sys.modules.get(path.stem), _IMPORTED.get(path.resolve(), (None, b""))
    if module is None:
        module = _imported(path)
    elif module is not own:
        raise ValueError(f"{path}: a module called {path.stem!r} already exists; rename the file")
    elif path.read_bytes() != content:
        raise ValueError(f"{path}: has changed since it was imported; restart Python")
    found = getattr(module, name, None)
    if not isinstance(found, kind):
        raise ValueError(f"{path}: must hold a {kind.__module__}.{kind.__name__} called {name}")
    summary, *_ = (module.__doc__ or path.name).splitlines()
    return path.stem, summary, found


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: the config of a model in the same file is found again by the name of its module.
    sys.modules[path.stem], _IMPORTED[path.resolve()] = module, (module, path.read_bytes())
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]  # half of a file is not one
        raise
    return module


def digest(*folders: Path) -> str:
    """A digest, in hex, of names and contents of the Python files in `folders` and below them."""
    found = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()
