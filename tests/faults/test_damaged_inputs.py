"""Damaged files of every kind are read as before or refused by name; ``make faults`` tries 250 of each kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.inputs import KINDS
from tests.slowness import slower

COUNT = int(os.environ.get("FAULTS", "16"))
LIMIT_S = (60 + COUNT) * slower()


@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_worse_than_a_clear_error(kind, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.inputs", kind, "0", str(COUNT), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["same"] + found["refused"] == COUNT
    assert found["same"] if kind in ("cache", "checkpoint") else found["refused"]
