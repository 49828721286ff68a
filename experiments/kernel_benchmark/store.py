"""Results as a file that grows by rows, and what makes a row still true.

``experiments/results/<device>/kernels.json``: ``{"device": ..., "environments": {id: ...}, "peaks": ..., "rows":
{name: row}}``. A row holds for the sources that made it: files of `pallas_kernels` and of this benchmark, versions, the
device, and for our GPU kernels the tuned block sizes. So a commit that changes only a document makes no row old, and a
change that is not committed does.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pallas_kernels
from experiments.files import digest
from experiments.kernel_benchmark.cases import Case
from kunlun_jax.provenance import process
from kunlun_jax.training.run_directory import write_atomic
from pallas_kernels.mosaic.tuning import slug
from pallas_kernels.roofline import Pass

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "numpy",
    "nvidia-cudnn-cu13",
    "torch",
    "triton",
    "jax-triton",
    "tokamax",
)
"""Those that a time depends on."""
KERNELS = Path(pallas_kernels.__file__).parent
OPERATORS = KERNELS / "operators"
RESULTS = Path("experiments/results")


class Row(NamedTuple):
    """What a row of the results is about."""

    case: Case
    pass_: Pass
    implementation: str

    @property
    def name(self) -> str:
        """Tells it from all others, e.g. ``self: B6 Q24 s0.5 h4 d32 gelu | forward | xla``."""
        return f"{self.case.name} | {self.pass_} | {self.implementation}"


@functools.cache
def sources() -> str:
    """A digest of the Python files that a time depends on."""
    return digest(KERNELS, Path(__file__).parent)[:12]


def environment(device: str) -> dict[str, Any]:
    """What must be known of a number measured on a device, which this does not open."""
    return process(PACKAGES) | {"device": device, "sources": sources()}


class Store:
    """The results file of a device: read at once, written after each row.

    Args:
      path: the JSON file; its folder is made.
      device: the name that JAX gives the device.
      fresh: whether to forget what it has.
      extra: by implementation, what its rows hold for besides sources and versions.

    Raises:
      ValueError: the file is of another device.
    """

    def __init__(self, path: Path, device: str, fresh: bool = False, extra: Mapping[str, str] | None = None):
        self.path, self.device, self.extra = path, device, extra or {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {"device": device, "environments": {}, "peaks": None, "rows": {}}
        if path.exists() and not fresh:
            old = json.loads(path.read_text())
            if old.get("device") != device:
                raise ValueError(f"{path} has results of {old.get('device')!r}, and this is {device!r}")
            self.content |= old
        self._environment = environment(device)
        self._id = hashlib.sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Name -> row."""
        return self.content["rows"]

    def made_with(self, row: Row) -> str:
        """What a row holds for, as one string: sources, versions and, for our GPU kernels, tuned block sizes."""
        versions = self._environment["versions"].items()
        held = [self._environment["sources"], *(f"{name} {version}" for name, version in versions)]
        if row.implementation.startswith("mosaic"):
            operator = row.case.operator.removesuffix("_block")  # a block takes gdpa's sizes
            path = OPERATORS / operator / "tuning" / f"{slug(self.device)}.json"
            held.append(hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "none")
        return " ".join(filter(None, [*held, self.extra.get(row.implementation)]))

    def holds(self, row: Row) -> bool:
        """Whether the file has this row and what made it is what would make it now."""
        return self.rows.get(row.name, {}).get("made_with") == self.made_with(row)

    def lacks(self, row: Row, retry: bool) -> bool:
        """Whether a row is to be measured; `retry` asks for those again that could not run."""
        return not self.holds(row) or (retry and "cannot_run" in self.rows[row.name])

    def put(self, row: Row, fields: dict[str, Any]) -> None:
        """Adds or replaces a row; it is on disk when this returns.

        Args:
          row: what it is about.
          fields: what was measured, or ``{"cannot_run": why}``.
        """
        self.content["environments"][self._id] = self._environment
        about = {"case": row.case.name, "operator": row.case.operator, "group": row.case.group}
        about |= {"pass": row.pass_, "implementation": row.implementation}
        self.rows[row.name] = about | fields | {"made_with": self.made_with(row), "environment": self._id}
        self.write()

    def write(self) -> None:
        """Writes the file, without environments that no row names."""
        used = {row["environment"] for row in self.rows.values()}
        kept = {name: value for name, value in self.content["environments"].items() if name in used}
        self.content["environments"] = kept
        write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")


def unable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without a number."""
    return [row for row in rows if "cannot_run" in row]
