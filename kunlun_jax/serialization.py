"""Trees of dataclasses to plain JSON values and back, so that a run directory is enough to rebuild a model."""

import dataclasses
import importlib
import types
import typing
from pathlib import Path
from typing import Any

KIND = "kind"
"""Beside the fields of a dataclass that is derived from another one: ``package.module.Class``, which one it is."""
VERSION = "version that wrote it (env.json names the commit)"


def to_json(value: Any) -> Any:
    """A tree of dataclasses, dicts, tuples, paths and plain values as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        cls = type(value)
        return {KIND: f"{cls.__module__}.{cls.__qualname__}", **fields} if is_derived(cls) else fields
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def is_derived(cls: type) -> bool:
    """Whether a dataclass is derived from another one, so that a field of that one's type may hold either."""
    return any(dataclasses.is_dataclass(base) for base in cls.__mro__[1:])


def from_json(kind: Any, value: Any, name: str = "config") -> Any:
    """The inverse of `to_json` for a value of type `kind`.

    Raises:
      ValueError: a field is unknown or missing, a class is not there, or something is not an object where one is due;
        the message names it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(arguments[0], value, name)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_json(next(k for k in arguments if k is not type(None)), value, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, value, name)
    if origin is tuple:
        item = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(from_json(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(item, value, strict=True)))
    if origin is dict:
        return {key: from_json(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    return Path(value) if kind is Path else value


def _dataclass_from_json(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must be an object with the fields of {kind.__name__}")
    if KIND in value:
        kind = _class_of(value[KIND], kind, name)
        value = {field: item for field, item in value.items() if field != KIND}
    elif not dataclasses.fields(kind):  # a base, which is nothing by itself
        raise ValueError(f"{name} has no {KIND!r}, which names the class of the config: use the {VERSION}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind)]
    if set(fields) != set(value):
        raise ValueError(
            f"{name} has the fields {sorted(value)}; this version of kunlun_jax expects {sorted(fields)}: "
            f"use the {VERSION}"
        )
    return kind(**{field: from_json(hints[field], value[field], f"{name}.{field}") for field in fields})


def _class_of(path: str, base: type, name: str) -> type:
    """The dataclass of a dotted path, which must be derived from `base`."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError):
        raise ValueError(f"{name}.{KIND} is {path!r}, and there is no such class: use the {VERSION}") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and issubclass(found, base)):
        raise ValueError(f"{name}.{KIND} is {path!r}; it must name a dataclass derived from {base.__name__}")
    return found
