"""Every picture and table that is made of stored results, drawn again: ``python -m experiments.figures``.

Pictures lie beside their JSON in ``experiments/results/<device>``. Tables stand in Markdown between the marks
``<!-- table NAME -->`` and ``<!-- end of table -->``. Nothing is measured here, and a test fails when a picture or a
table is not what its results give.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from experiments import compare, learns, parity, table_scaling
from experiments.comparisons import NAMES
from experiments.kernel_benchmark import scaling

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = compare.RESULTS
PAGES = ("README.md", "docs/results.md")
MARKS = re.compile(r"(<!-- table (?P<name>[\w/]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def pictures() -> dict[Path, Callable[[Path], None]]:
    """Each picture of stored results, and what draws it into a path."""
    found: dict[Path, Callable[[Path], None]] = {}
    for file in sorted(RESULTS.glob("*/*.json")):
        content, name = json.loads(file.read_text()), file.stem
        if name in NAMES:
            comparison = compare.comparison_of(name)
            draw = lambda path, c=content, k=comparison: compare.picture(c["rows"], k, path)  # noqa: E731
        elif name == "learns":
            draw = lambda path, c=content: learns.picture(c["rows"], path)  # noqa: E731
        elif name == "parity":
            draw = lambda path, c=content: parity.picture(c, path)  # noqa: E731
        elif name == "table_scaling":
            draw = lambda path, c=content: table_scaling.picture(c["sizes"], path)  # noqa: E731
        elif name == "window_scaling":
            draw = lambda path, c=content: scaling.picture(c, path)  # noqa: E731
        else:
            continue
        found[file.with_suffix(".png")] = draw
    return found


def table(name: str) -> str:
    """The table ``DEVICE/RESULTS`` in Markdown.

    Raises:
      ValueError: there are no such results, or nothing makes a table of them.
    """
    file = RESULTS / f"{name}.json"
    if not file.exists():
        raise ValueError(f"table {name}: there is no {file.relative_to(REPOSITORY)}")
    content, stem = json.loads(file.read_text()), file.stem
    if stem in NAMES:
        return compare.table(content["rows"], compare.comparison_of(stem))
    makers = {"learns": lambda: learns.markdown(content["rows"]), "parity": lambda: parity.markdown(content)}
    makers |= {"table_scaling": lambda: table_scaling.markdown(content["sizes"])}
    if stem not in makers:
        raise ValueError(f"table {name}: nothing makes a table of it; there are {[*NAMES, *makers]}")
    return makers[stem]()


def with_tables(text: str) -> str:
    """Markdown with what stands between marks made anew."""
    return MARKS.sub(lambda match: f"{match[1]}{table(match['name'])}\n{match[3]}", text)


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
