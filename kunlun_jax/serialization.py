"""Trees of dataclasses to plain JSON values and back, so that a run directory alone tells how to rebuild a model."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any


def to_json(value: Any) -> Any:
    """A tree of dataclasses, dicts, tuples, paths and plain values as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: Any, value: Any, name: str = "config") -> Any:
    """The inverse of `to_json` for a value of type `kind`.

    Raises:
      ValueError: a field is unknown or missing, or not an object where one is due; the message names it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_json(_of_union(arguments, value), value, name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r}; it must be an object with the fields of {kind.__name__}")
        if set(fields) != set(value):
            raise ValueError(
                f"{name} has the fields {sorted(value)}; this version of kunlun_jax expects {sorted(fields)}: "
                "use the version that wrote it (env.json names the commit)"
            )
        return kind(**{field: from_json(hints[field], value[field], f"{name}.{field}") for field in fields})
    if origin is tuple:
        item = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(from_json(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(item, value, strict=True)))
    if origin is dict:
        return {key: from_json(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    return Path(value) if kind is Path else value


def _of_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """The member of a union that a value is of: of several dataclasses the one whose fields it has, or else the most.

    The classes of a union have no names in the file, so no two of them may have the same fields.
    """
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1 or not isinstance(value, dict):
        return kinds[0]
    return min(kinds, key=lambda kind: len({field.name for field in dataclasses.fields(kind)} ^ set(value)))
