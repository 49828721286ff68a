"""Redraws every picture and table that is made from stored results: ``python -m experiments.figures``.

Pictures lie beside their JSON in ``experiments/results/<device>``. Tables stand in Markdown between the marks
``<!-- table NAME -->`` and ``<!-- end of table -->``; ``<!-- table NAME earlier -->`` has the rows that a comparison no
longer has. Nothing is measured here, and a test fails if a picture or a table does not match its results.
"""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import (
    compare,
    compare_speed,
    data_scaling,
    learns,
    mfu_bound,
    mfu_report,
    parity,
    scaling_report,
    scaling_speed_report,
    table_scaling,
)
from experiments.comparisons import NAMES
from experiments.dry_run import report as dry_run_report
from experiments.kernel_benchmark import scaling
from experiments.result_rows import RESULTS
from experiments.scaling_plan import BUDGETS, Data, current

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md")
MARKS = re.compile(r"(<!-- table (?P<name>[\w/]+)(?P<earlier> earlier)? -->\n).*?(<!-- end of table -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Made:
    """What is made of a file of results: a picture into a path, and tables in Markdown where they are."""

    picture: Callable[[Any, Path], None]
    table: Callable[[Any], str] | None = None
    earlier: Callable[[Any], str] | None = None


def of_comparison(name: str) -> Made:
    """What is made of a comparison's rows."""
    comparison = compare.comparison_of(name)

    def rows(content: Any) -> list[dict[str, Any]]:
        return compare.current(content["rows"], comparison)

    return Made(
        lambda content, path: compare.picture(rows(content), comparison, path),
        lambda content: compare.table(rows(content), comparison),
        lambda content: compare.table(rows(content), comparison, earlier=True),
    )


def of_speed(name: str) -> Made:
    """What is made of the speed of a comparison's systems."""
    comparison = compare.comparison_of(name)
    return Made(
        lambda content, path: compare_speed.picture(content["rows"], comparison, path),
        lambda content: compare_speed.markdown(content["rows"], comparison),
    )


def of_scaling_law(data: Data) -> Made:
    """What is made of the scaling law's rows on a data set."""
    budget = BUDGETS["cpu"]
    return Made(
        lambda content, path: scaling_report.picture(current(content["rows"], budget, data), budget, data, path),
        lambda content: scaling_report.markdown(current(content["rows"], budget, data), budget),
    )


MADE = {name: of_comparison(name) for name in NAMES} | {
    **{f"{name}_speed": of_speed(name) for name in NAMES},
    "data_scaling": Made(
        lambda c, path: data_scaling.picture(c["rows"], path), lambda c: data_scaling.markdown(c["rows"])
    ),
    "dryrun": Made(lambda c, path: dry_run_report.picture(c["rows"], path)),
    "learns": Made(lambda c, path: learns.picture(c["rows"], path), lambda c: learns.markdown(c["rows"])),
    "mfu": Made(lambda c, path: mfu_report.picture(c["rows"], path), lambda c: mfu_report.markdown(c["rows"])),
    "mfu_bound": Made(lambda c, path: mfu_bound.picture(c["rows"], path), lambda c: mfu_bound.markdown(c["rows"])),
    "parity": Made(parity.picture, parity.markdown),
    "scaling_law": of_scaling_law("synthetic"),
    "scaling_law_movielens": of_scaling_law("movielens"),
    "scaling_speed": Made(
        lambda c, path: scaling_speed_report.picture(c["rows"], BUDGETS["cpu"], path),
        lambda c: scaling_speed_report.markdown(c["rows"], BUDGETS["cpu"]),
    ),
    **dict.fromkeys(
        ("table_scaling", "table_scaling_devices"),
        Made(lambda c, path: table_scaling.picture(c["sizes"], path), table_scaling.markdown),
    ),
    "window_scaling": Made(scaling.picture),
}
"""Name of a file of results -> what is made of its contents."""


def pictures() -> dict[Path, Callable[[Path], None]]:
    """Each picture of stored results, and what draws it into a path."""
    return {
        file.with_suffix(".png"): functools.partial(MADE[file.stem].picture, json.loads(file.read_text()))
        for file in sorted(RESULTS.glob("*/*.json"))
        if file.stem in MADE
    }


def table(name: str, *, earlier: bool = False) -> str:
    """The table ``DEVICE/RESULTS`` in Markdown, or that of its earlier rows.

    Raises:
      ValueError: there are no such results, or nothing makes a table of them.
    """
    file = RESULTS / f"{name}.json"
    if not file.exists():
        raise ValueError(f"table {name}: there is no {file.relative_to(REPOSITORY)}")
    made = MADE.get(file.stem)
    write = made and (made.earlier if earlier else made.table)
    if write is None:
        raise ValueError(f"table {name}: nothing makes a table of its {'earlier ' * earlier}rows")
    return write(json.loads(file.read_text()))


def with_tables(text: str) -> str:
    """Markdown with what stands between marks made anew."""
    return MARKS.sub(
        lambda match: f"{match[1]}{table(match['name'], earlier=bool(match['earlier']))}\n{match[4]}", text
    )


def main() -> int:
    """Draws and writes all; returns the exit code."""
    for path, draw in pictures().items():
        draw(path)
        print(path.relative_to(REPOSITORY))
    for page in PAGES:
        path = REPOSITORY / page
        path.write_text(with_tables(path.read_text()))
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
