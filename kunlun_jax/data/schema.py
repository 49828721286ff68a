"""`Schema`: the one description of a data set, from which tables, batch shapes and validation follow."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

Overflow = Literal["oov", "hash"]
TimeUnit = Literal["s", "ms", "us", "ns"]
Allowed = Literal["relative_times", "early_splits", "events_apart"]
NullPolicy = Literal["masked", "own_row", "dropped", "indicator"]
"""What a null stands for.

Of a task "masked": no label, so the row counts nothing for it. Of a categorical feature or field "own_row": an id with
a table row of its own. Of a multi-valued feature "dropped": no item, and a null list is an empty one. Of a dense
feature or field "indicator": the mean of the training rows, and a 1 in one more dense feature.
"""
NULL_ID = -1
"""Stands for a null in a column whose policy is "own_row"; it reads the last row of its table."""


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table: `rows` rows, those for values out of vocabulary and for nulls included."""

    name: str
    rows: int
    size: int
    overflow: Overflow
    vocabulary: bool = False
    min_count: int = 1


@dataclasses.dataclass(frozen=True)
class Categorical:
    """A feature whose values are ids ``0 .. size - 1``.

    Attributes:
      name: column name.
      size: number of ids that the table holds; an id beyond it is counted and goes where `overflow` says.
      overflow: "oov" sends such ids to one extra row, "hash" spreads them over the table.
      table: table name; features with the same table name share its embeddings. Empty means its own table.
      vocabulary: values are text or any numbers, and a vocabulary gives them ids (Parquet data only).
      min_count: a value must occur so often in the training rows to have an id of its own.
    """

    name: str
    size: int
    overflow: Overflow = "oov"
    table: str = ""
    vocabulary: bool = False
    min_count: int = 1

    @property
    def table_name(self) -> str:
        """The table this feature reads."""
        return self.table or self.name


@dataclasses.dataclass(frozen=True)
class EventType:
    """One kind of event: its id fields and dense fields. Every event also has a time."""

    name: str
    categorical: tuple[Categorical, ...]
    dense: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """Description of a data set.

    Attributes:
      name: of the data set.
      categorical: single-valued context features.
      multi_valued: context features with any number of ids per example.
      dense: names of dense context features, finite float32.
      events: event types, each with its fields.
      tasks: names of the labels, each in [0, 1].
      keys: columns that identify a row to a person; they go into the prediction file.
      group: the key column whose values group rows for gAUC (the user), or empty.
      time_unit: of integer times; columns of timestamps have their own.
      allow: what is refused unless it is said here: times that do not count from 1970 ("relative_times"), a split
        before the training split ("early_splits"), events that are all before or all after the requests
        ("events_apart").
      nulls: what a null in a column stands for, as pairs of column and policy; in JSON an object. A field of an event
        type is named "click.item". Nulls of columns that are not named are refused.
    """

    name: str
    categorical: tuple[Categorical, ...]
    multi_valued: tuple[Categorical, ...] = ()
    dense: tuple[str, ...] = ()
    events: tuple[EventType, ...] = ()
    tasks: tuple[str, ...] = ("label",)
    keys: tuple[str, ...] = ()
    group: str = ""
    time_unit: TimeUnit = "ms"
    allow: tuple[Allowed, ...] = ()
    nulls: tuple[tuple[str, NullPolicy], ...] = ()

    def __post_init__(self):
        columns = [f.name for f in self.categorical + self.multi_valued] + list(self.dense) + list(self.tasks)
        _refuse_duplicates("column", columns)
        _refuse_duplicates("event type", [e.name for e in self.events])
        for event in self.events:
            _refuse_duplicates(
                f"field of event type {event.name!r}", [f.name for f in event.categorical] + list(event.dense)
            )
        if not self.tasks:
            raise ValueError("schema field 'tasks' is empty; name at least one label column")
        if self.group and self.group not in self.keys:
            raise ValueError(f"schema field 'group' is {self.group!r}; it must be one of 'keys' {list(self.keys)}")
        _refuse_duplicates("column of schema field 'nulls'", [column for column, _ in self.nulls])
        places = self._null_policies()
        for column, policy in self.nulls:
            if column not in places:
                raise ValueError(f"schema field 'nulls' names {column!r}; it may name {sorted(places)}")
            if policy != places[column]:
                raise ValueError(f"schema field 'nulls' has {policy!r} for {column!r}; it must be {places[column]!r}")
        _ = self.tables

    def _null_policies(self) -> dict[str, NullPolicy]:
        """The policy that each column may have."""
        places: dict[str, NullPolicy] = dict.fromkeys(self.tasks, "masked")
        places |= {feature.name: "own_row" for feature in self.categorical}
        places |= {feature.name: "dropped" for feature in self.multi_valued}
        places |= dict.fromkeys(self.dense, "indicator")
        for event in self.events:
            places |= {f"{event.name}.{field.name}": "own_row" for field in event.categorical}
            places |= {f"{event.name}.{name}": "indicator" for name in event.dense}
        return places

    def with_indicators(self) -> "Schema":
        """The schema of the columns that are made of this one: with a dense feature more for each that may be null."""
        marked = {column for column, policy in self.nulls if policy == "indicator"}

        def more(names: tuple[str, ...], prefix: str = "") -> tuple[str, ...]:
            return names + tuple(f"{name}_is_null" for name in names if prefix + name in marked)

        events = tuple(dataclasses.replace(e, dense=more(e.dense, f"{e.name}.")) for e in self.events)
        return dataclasses.replace(self, dense=more(self.dense), events=events)

    @property
    def tables(self) -> dict[str, Table]:
        """Embedding tables by name, in order of first use.

        Raises:
          ValueError: two features share a table but differ in size, overflow or vocabulary, or a size is not positive.
        """
        tables: dict[str, Table] = {}
        features = self.categorical + self.multi_valued + tuple(f for e in self.events for f in e.categorical)
        own_rows = {column for column, policy in self.nulls if policy == "own_row"}
        named = [(f.name, f) for f in self.categorical]
        named += [(f"{e.name}.{f.name}", f) for e in self.events for f in e.categorical]
        with_null = {feature.table_name for name, feature in named if name in own_rows}
        for feature in features:
            if feature.size < 1:
                raise ValueError(f"feature {feature.name!r} has size {feature.size}; it must be at least 1")
            if feature.overflow not in ("oov", "hash"):
                raise ValueError(f"feature {feature.name!r} has overflow {feature.overflow!r}; use 'oov' or 'hash'")
            if feature.min_count < 1:
                raise ValueError(f"feature {feature.name!r} has min_count {feature.min_count}; it must be at least 1")
            name = feature.table_name
            rows = feature.size + (feature.overflow == "oov") + (name in with_null)
            table = Table(name, rows, feature.size, feature.overflow, feature.vocabulary, feature.min_count)
            if tables.setdefault(table.name, table) != table:
                raise ValueError(
                    f"feature {feature.name!r} wants {table}, but an earlier one wants {tables[table.name]}"
                )
        return tables

    def event(self, name: str) -> EventType:
        """The event type of that name; a KeyError names the existing ones."""
        for event in self.events:
            if event.name == name:
                return event
        raise KeyError(f"no event type {name!r} in schema {self.name!r}; it has {[e.name for e in self.events]}")

    def resized(self, table: str, rows: int) -> "Schema":
        """The schema with `rows` rows in one of its tables, into which ids beyond it are hashed."""

        def swap(features: tuple[Categorical, ...]) -> tuple[Categorical, ...]:
            return tuple(
                dataclasses.replace(f, size=rows, overflow="hash") if f.table_name == table else f for f in features
            )

        return dataclasses.replace(
            self,
            categorical=swap(self.categorical),
            multi_valued=swap(self.multi_valued),
            events=tuple(dataclasses.replace(event, categorical=swap(event.categorical)) for event in self.events),
        )

    def matches(self, event: str) -> tuple[tuple[int, int], ...]:
        """Where the candidate and events of a type refer to the same thing: (context column, event column) pairs.

        Columns count `categorical` of the schema and of the event type; both columns of a pair read the same table.
        Multi-valued features are left out.
        """
        return tuple(
            (column, other)
            for column, feature in enumerate(self.categorical)
            for other, field in enumerate(self.event(event).categorical)
            if feature.table_name == field.table_name
        )

    def to_json(self) -> str:
        """The schema as the text of a ``schema.json``."""
        fields = _written(self)
        return json.dumps(fields | ({"nulls": dict(self.nulls)} if self.nulls else {}), indent=2) + "\n"

    @staticmethod
    def read(path: Path) -> "Schema":
        """Reads a ``schema.json``.

        Raises:
          ValueError: names the file, the field, its value and a valid one.
        """
        try:
            return _from_json(Schema, json.loads(Path(path).read_text()), "schema")
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; a data set needs a schema.json in its root folder") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def _written(described: Any) -> Any:
    """A description as JSON has it, less what is as usual of the fields that came later.

    Fingerprints of data are made of this text, and those of data without such fields are to stay.
    """
    if isinstance(described, tuple):
        return [_written(item) for item in described]
    if not dataclasses.is_dataclass(described):
        return described
    fields = [(field, getattr(described, field.name)) for field in dataclasses.fields(described)]
    return {field.name: _written(x) for field, x in fields if field.name not in _LATER or x != field.default}


def _refuse_duplicates(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} names must be unique; {twice} appear more than once")


_LATER = ("vocabulary", "min_count", "time_unit", "allow", "nulls")
_NESTED: dict[str, Any] = {"categorical": Categorical, "multi_valued": Categorical, "events": EventType}


def _from_json(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it must be an object with the fields of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{where} has unknown fields {unknown}; known are {sorted(fields)}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in value]
    if missing:
        raise ValueError(f"{where} lacks the fields {missing}")
    arguments = {}
    for name, item in value.items():
        path = f"{where}.{name}"
        if name in _NESTED:
            _expect(path, item, list)
            arguments[name] = tuple(_from_json(_NESTED[name], v, f"{path}[{i}]") for i, v in enumerate(item))
        elif name == "nulls":
            _expect(path, item, dict)
            for column, policy in item.items():
                _expect(f"{path}[{column!r}]", policy, str)
            arguments[name] = tuple(item.items())
        elif get_origin(fields[name].type) is tuple:
            _expect(path, item, list)
            for i, entry in enumerate(item):
                _expect_value(f"{path}[{i}]", entry, get_args(fields[name].type)[0])
            arguments[name] = tuple(item)
        else:
            _expect_value(path, item, fields[name].type)
            arguments[name] = item
    return cls(**arguments)


def _expect_value(path: str, value: Any, kind: Any) -> None:
    """`kind` is int, bool, str or a Literal of texts."""
    _expect(path, value, kind if kind in (int, bool) else str)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{path} is {value!r}; it must be one of {list(get_args(kind))}")


def _expect(path: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {bool: "true or false", list: "a list", dict: "an object", str: "a string", int: "a whole number"}
        raise ValueError(f"{path} is {value!r}; it must be {names[kind]}")
