"""Which types a column may have, and what it is read as: other types are converted where no value changes."""

# pyright: reportAttributeAccessIssue=false
import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # its functions are created at import, which pyright does not see
import pyarrow.types as is_

Kind = str
"""What a column is for: a key of `KINDS`."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Columns of one purpose.

    Attributes:
      name: of the types that it may have, for messages.
      takes: whether a type, without dictionaries and the like, can be read.
      cast: what to write where it cannot.
    """

    name: str
    takes: Callable[[pa.DataType], bool]
    cast: str


def _whole(t: pa.DataType) -> bool:
    # Decimals of up to 18 digits fit int64.
    return is_.is_integer(t) or (is_.is_decimal(t) and t.scale == 0 and t.precision <= 18)


def _number(t: pa.DataType) -> bool:
    return is_.is_floating(t) or is_.is_integer(t) or is_.is_decimal(t)


def _text(t: pa.DataType) -> bool:
    return is_.is_string(t) or is_.is_large_string(t) or is_.is_string_view(t)


def _value(t: pa.DataType) -> bool:
    return _text(t) or _whole(t)


def _readable(t: pa.DataType, takes: Callable[[pa.DataType], bool]) -> bool:
    return is_.is_null(t) or takes(t)  # a column of nulls may have no type, and what they mean is another question


def _list_of(takes: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    lists = (is_.is_list, is_.is_large_list, is_.is_fixed_size_list, is_.is_list_view, is_.is_large_list_view)
    return lambda t: any(test(t) for test in lists) and _readable(plain_type(t.value_type), takes)


_ID_CAST = 'cast it, as pyarrow.compute.cast(column, "int64"), or say "vocabulary": true of this feature in schema.json'
_LIST_CAST = 'cast it to list<int64>, or say "vocabulary": true of this feature in schema.json if it holds text'
KINDS: dict[Kind, _Kind] = {
    "int": _Kind("an integer type such as int64", _whole, 'cast it, as pyarrow.compute.cast(column, "int64")'),
    "id": _Kind("an integer type such as int64", _whole, _ID_CAST),
    "value": _Kind("text or integers", _value, 'cast it, as pyarrow.compute.cast(column, "string")'),
    "time": _Kind(
        "an integer type such as int64, or timestamps",
        lambda t: is_.is_integer(t) or is_.is_timestamp(t),
        'cast it, as pyarrow.compute.cast(column, "timestamp[ms]")',
    ),
    "float": _Kind(
        "a float or integer type such as float32", _number, 'cast it, as pyarrow.compute.cast(column, "float32")'
    ),
    "label": _Kind(
        "a float or integer type with values in [0, 1]",
        lambda t: _number(t) or is_.is_boolean(t),
        'cast it, as pyarrow.compute.cast(column, "float32")',
    ),
    "list": _Kind("a list of integers such as list<int64>", _list_of(_whole), _LIST_CAST),
    "values": _Kind("a list of text or integers", _list_of(_value), "cast it to list<string>"),
    "key": _Kind("an integer or string type", _value, 'cast it, as pyarrow.compute.cast(column, "string")'),
}


_OF_NULLS = {
    "value": pa.large_string(),
    "key": pa.large_string(),
    "float": pa.float64(),
    "label": pa.float64(),
    "list": pa.large_list(pa.int64()),
    "values": pa.large_list(pa.large_string()),
}
"""Type of a column of nulls that has none of its own."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without dictionaries and runs."""
    while is_.is_dictionary(kind) or is_.is_run_end_encoded(kind):
        kind = kind.value_type
    return kind


def fault(found: pa.DataType, kind: Kind) -> str | None:
    """What is wrong with a column's type, and the cast to write; None if it can be read."""
    plainly, cast = plain_type(found), KINDS[kind].cast
    if _readable(plainly, KINDS[kind].takes):
        return None
    if is_.is_temporal(plainly) and kind != "time":
        cast = f'cast it, as pyarrow.compute.cast(column, "{"int32" if is_.is_date32(plainly) else "int64"}")'
    return f"its type is {found}; it must be {KINDS[kind].name}; {cast}"


def plain(array: pa.Array, kind: Kind) -> pa.Array:
    """A column as plain values: integers, float64, booleans, large_strings, timestamps, or large lists of those.

    Args:
      array: of a type in which `fault` finds nothing.
      kind: what it is for.
    """
    while is_.is_dictionary(array.type) or is_.is_run_end_encoded(array.type):
        array = array.dictionary_decode() if is_.is_dictionary(array.type) else pc.run_end_decode(array)
    if is_.is_null(array.type):
        return pa.nulls(len(array), _OF_NULLS.get(kind, pa.int64()))
    if kind in ("list", "values"):
        return _plain_list(array, kind)
    if _text(array.type):
        return array.cast(pa.large_string())
    if kind in ("float", "label"):
        return array if is_.is_boolean(array.type) else array.cast(pa.float64(), safe=False)
    return array.cast(pa.int64()) if is_.is_decimal(array.type) else array


def _plain_list(array: pa.Array, kind: Kind) -> pa.Array:
    # Not by a cast: pyarrow 26 casts views of one list to lists without items.
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    items = plain(array.flatten(), "value" if kind == "values" else "int")
    return pa.LargeListArray.from_arrays(pa.array(offsets), items, mask=array.is_null() if array.null_count else None)
