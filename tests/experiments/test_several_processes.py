"""Runs of two processes that lose one, or are asked to stop, and go on; and what goes wrong at their start."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from experiments import train
from tests.experiments.run_folder import checkpoints, lasting
from tests.experiments.tiny import ANY
from tests.several_processes import LIMIT_S, Several

HEARTBEAT_S = 6
RUN = (*ANY, "--loader.shuffle", "global", "--model.dropout", "0", "--run.log-every", "5", "--run.eval-every", "8")
STEPS = 19


def trained(point: str, directory: Path) -> Several:
    """experiments.train in two processes with two devices each."""
    arguments = (point, *RUN, "--run.dir", str(directory), "--mesh.heartbeat-s", str(HEARTBEAT_S))
    logs = directory.with_name(f"{directory.name}-{point.replace(':', '-')}")
    return Several(2, 2, "tests.experiments.one_of_several", *arguments, logs=logs)


@pytest.mark.slow
def test_a_run_of_two_processes_loses_one_is_stopped_and_ends_like_another(tmp_path):
    """One process killed: the other ends, says why, and does not hang. A signal to one stops both at the same step.

    The run goes on each time, in the end bit for bit like one that nobody disturbed; and from the stop on one device.
    """
    undisturbed, directory, moved = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "moved"
    trained("none", undisturbed).succeed()

    with trained("kill:1:7", directory) as several:
        assert several.processes[1].wait(LIMIT_S) == -signal.SIGKILL
        began = time.monotonic()
        assert several.finish()[0] != 0
        assert time.monotonic() - began < 2 * HEARTBEAT_S + 5
        assert "another task died" in several.printed(0)
        assert f"the others end within {HEARTBEAT_S} s" in several.printed(0)

    stopping = trained("term:1:8", directory)
    stopping.succeed()
    said = [re.findall(r"SIGTERM: saved after (\d+) of 19 steps", stopping.printed(number)) for number in (0, 1)]
    assert said[0] == said[1] and len(said[0]) == 1
    stopped = int(said[0][0])
    assert 8 <= stopped < STEPS and checkpoints(directory)[-1] == stopped
    shutil.copytree(directory, moved)

    last = trained("none", directory)
    last.succeed()
    assert "learning curve" in last.printed(0) and "learning curve" not in last.printed(1)
    assert lasting(directory) == lasting(undisturbed)

    assert train.main([*RUN, "--run.dir", str(moved)]) == 0
    expected, found = (json.loads((path / "result.json").read_text())["splits"] for path in (undisturbed, moved))
    assert found.keys() == expected.keys() == {"valid", "test"}
    for split, values in expected.items():
        assert found[split]["ne"] == pytest.approx(values["ne"], rel=1e-5)
        assert found[split]["rows"] == values["rows"] == 70


@pytest.mark.slow
def test_what_goes_wrong_in_process_0_ends_both_at_once(tmp_path):
    """A run directory of another config: the same error in both, and no waiting for each other."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    with trained("none", directory) as several:
        assert several.finish() == [2, 2]
    for number in (0, 1):
        assert "was made by another config; go on with that one" in several.printed(number)
