"""The models, a file each with its config: ``from kunlun_jax.models import DIN, DINConfig``. Nothing lists them."""

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:
    if name[:1].isupper():  # a class; modules are found without this
        for module in pkgutil.iter_modules(__path__):
            found = getattr(importlib.import_module(f"{__name__}.{module.name}"), name, None)
            if getattr(found, "__module__", None) == f"{__name__}.{module.name}":
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
