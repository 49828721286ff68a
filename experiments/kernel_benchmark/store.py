"""Results as a file that grows by rows, and what makes a row still true.

``experiments/results/<device>/kernels.json``: ``{"device": ..., "environments": {id: ...}, "peaks": ..., "rows":
{name: row}}``. A row holds for the sources that made it: files of `pallas_kernels` and of this benchmark, versions, the
device, and for our GPU kernels the tuned block sizes. So a commit that changes only a document makes no row old, and a
change that is not committed does.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import pallas_kernels
from kunlun_jax.training.run_directory import command, commit, write_atomic
from pallas_kernels.mosaic.tuning import slug

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
KERNELS = Path(pallas_kernels.__file__).parent
OPERATORS = KERNELS / "operators"
RESULTS = Path("experiments/results")


def device_kind() -> str:
    """The name that JAX gives the device at hand."""
    return jax.devices()[0].device_kind


@functools.cache
def versions() -> dict[str, str]:
    """Version of each package that a time depends on; "absent" where it is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def sources() -> str:
    """A digest of the Python files that a time depends on."""
    files = sorted([*KERNELS.rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def tuned(operator: str) -> str:
    """A digest of an operator's tuned block sizes for this device; "none" without any."""
    path = OPERATORS / operator / "tuning" / f"{slug(device_kind())}.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.exists() else "none"


def environment() -> dict[str, Any]:
    """What a number needs beside it. ``KUNLUN_COMMIT`` names the commit where there is no checkout."""
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "device": device_kind(),
        "commit": os.environ.get("KUNLUN_COMMIT") or commit(),
        "sources": sources(),
        "command": command(),
        "cpu_count": os.cpu_count(),
    }


def made_with(implementation: str, operator: str, extra: str = "") -> str:
    """What a row of an implementation of an operator holds for, as one string."""
    tuning = tuned(operator) if implementation == "mosaic" else ""
    return " ".join(filter(None, [sources(), *(f"{k} {v}" for k, v in versions().items()), tuning, extra]))


class Store:
    """The results file of a device: read at once, written after each row.

    Args:
      path: the JSON file; its folder is made.
      fresh: whether to forget what it has.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {"device": device_kind(), "environments": {}, "peaks": None, "rows": {}}
        if path.exists() and not fresh:
            old = json.loads(path.read_text())
            if old.get("device") != device_kind():
                raise ValueError(f"{path} has results of {old.get('device')!r}, and this is {device_kind()!r}")
            self.content |= old
        self._environment = environment()
        self._id = hashlib.sha256(json.dumps(self._environment, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Name -> row."""
        return self.content["rows"]

    def holds(self, name: str, implementation: str, operator: str, extra: str = "") -> bool:
        """Whether the file has this row and what made it is what would make it now."""
        row = self.rows.get(name)
        return (
            row is not None
            and not row.get("started")
            and row["made_with"] == made_with(implementation, operator, extra)
        )

    def put(self, name: str, row: dict[str, Any], extra: str = "") -> None:
        """Adds or replaces a row; it is on disk when this returns."""
        self.content["environments"][self._id] = self._environment
        self.rows[name] = row | {
            "made_with": made_with(row["implementation"], row["operator"], extra),
            "environment": self._id,
        }
        self.write()

    def write(self) -> None:
        """Writes the file, without environments that no row names."""
        used = {row["environment"] for row in self.rows.values()}
        kept = {name: value for name, value in self.content["environments"].items() if name in used}
        self.content["environments"] = kept
        write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")


def row_name(case: str, pass_: str, implementation: str) -> str:
    """The name of a row."""
    return f"{case} | {pass_} | {implementation}"


def cannot_run(case: Any, pass_: str, implementation: str, why: str) -> dict[str, Any]:
    """A row that says why there is no number."""
    return {
        "case": case.name,
        "operator": case.operator,
        "group": case.group,
        "pass": pass_,
        "implementation": implementation,
        "cannot_run": why,
    }


def unable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without a number."""
    return [row for row in rows if "cannot_run" in row]
