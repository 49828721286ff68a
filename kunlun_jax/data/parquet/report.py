"""What is wrong with a data set: raised at once, or collected with how often it occurs."""

import dataclasses
from pathlib import Path


class DataError(ValueError):
    """A prepared data set is invalid; the message says where, and what is expected."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One kind of problem in one column of one file: where it is first, and how often it occurs.

    Attributes:
      kind: short name, such as "null" or "negative id".
      file: where.
      column: column name, or empty.
      message: the whole sentence about the first occurrence.
      count: values, rows or files with this problem.
    """

    kind: str
    file: Path
    column: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        return self.message + (f" ({self.count} of this kind here)" if self.count > 1 else "")


class Report:
    """Takes problems: if strict, raises the first as a `DataError`; otherwise collects the first of each kind."""

    def __init__(self, strict: bool):
        self.strict = strict
        self._problems: dict[tuple[str, Path, str], Problem] = {}

    @property
    def problems(self) -> list[Problem]:
        """The first of each kind per file and column, in the order found."""
        return list(self._problems.values())

    def add(self, kind: str, file: Path, right: str, column: str = "", where: str = "", count: int = 1) -> None:
        """Reports a problem; `right` is the value and what it should be, `where` the row group and row."""
        place = ", ".join(part for part in (where, f"column {column!r}" if column else "") if part)
        message = f"{file}: {place}: {right}" if place else f"{file}: {right}"
        if self.strict:
            raise DataError(message)
        key = (kind, file, column)
        if key in self._problems:
            self._problems[key] = dataclasses.replace(self._problems[key], count=self._problems[key].count + count)
        else:
            self._problems[key] = Problem(kind, file, column, message, count)
