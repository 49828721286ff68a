"""What lies in a run directory, for tests to compare."""

import json
from pathlib import Path

from kunlun_jax.training.run_directory import TIMING


def lasting(directory: Path) -> list[str]:
    """The lines of metrics.jsonl as they stand, less what is time, and the checksums, which follow from it."""
    text = (directory / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    return [json.dumps({k: v for k, v in line.items() if k not in (*TIMING, "crc32")}) for line in lines]


def checkpoints(directory: Path) -> list[int]:
    """The steps that a run can go on from."""
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())
