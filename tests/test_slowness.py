"""A long test without the marker `slow` fails, and a test that hangs is ended by name."""

import os
import re
import sys
import time
from pathlib import Path

import pytest

from tests import processes, slowness

REPOSITORY = Path(__file__).resolve().parent.parent

LONG = """
import time
import pytest

def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass

@pytest.fixture
def long_fixture():
    work(0.2)
    yield
    work(0.2)

def test_short(): pass

def test_long(long_fixture): work(0.2)

def test_that_waits_for_others(): time.sleep(0.6)

@pytest.mark.slow
def test_marked(long_fixture): work(0.2)
"""

HANGING = """
import ctypes
import threading

def test_before(): pass

def test_hangs():
    threading.Lock().acquire()
    ctypes.CDLL(None).sleep(100)

def test_behind(): pass
"""


def run_pytest(tmp_path, text, *arguments):
    (tmp_path / "test_some.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.slowness", "-p", "no:cacheprovider", *arguments]
    command += ["-c", os.devnull, "--rootdir", ".", "-W", "ignore::pytest.PytestUnknownMarkWarning", "test_some.py"]
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What the worker of xdist that runs this test was told is not for another pytest.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    done = processes.run(command, timeout=60 * slowness.slower(), cwd=tmp_path, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_a_long_test_without_its_marker_is_an_error(tmp_path):
    code, printed = run_pytest(tmp_path, LONG, "-o", "slow_test_seconds=0.1")
    assert code == 1
    assert "4 passed, 1 error" in printed  # a report of teardown that fails is an error beside the test that passed
    assert "test_some.py::test_long took 0." in printed
    assert "FAILED test_some.py::test_long (teardown)" in printed  # at once, not only at the end
    assert "a test may take 0 s: make it shorter, or mark it `slow`" in printed


def test_the_limit_is_longer_on_a_slower_processor(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(slowness.time, "process_time", lambda: next(clock))
    assert slowness.slower_now() == 1 / slowness.REFERENCE_S
    monkeypatch.setattr(slowness.time, "process_time", lambda: 0.0)
    assert slowness.slower_now() == 1


def test_a_processor_that_became_slower_has_the_longer_limit(tmp_path):
    """What the first test found out is over when the long one ends."""
    early = "import tests.slowness as s\ns.slower = lambda: 1.0\ns.slower_now = lambda: {}\n"
    code, printed = run_pytest(tmp_path, early.format(1.0) + LONG, "-o", "slow_test_seconds=0.1")
    assert code == 1 and "a test may take 0 s" in printed
    code, printed = run_pytest(tmp_path, early.format(100.0) + LONG, "-o", "slow_test_seconds=0.1")
    assert code == 0 and "4 passed" in printed


def test_what_has_not_begun_in_time_is_skipped_and_counted(tmp_path):
    code, printed = run_pytest(tmp_path, LONG, "--until", str(time.time() + 600))
    assert code == 0 and "4 passed" in printed
    code, printed = run_pytest(tmp_path, LONG, "--until", str(time.time()), "-rs", "-n", "1")
    assert code == 0 and "4 skipped" in printed
    assert re.search(r"not begun by \d\d:\d\d:\d\d, the time of --until", printed)


def test_a_long_test_within_the_limit_passes(tmp_path):
    code, printed = run_pytest(tmp_path, LONG)
    assert code == 0 and "4 passed" in printed


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_test_that_hangs_in_c_is_named_with_its_stack(tmp_path, workers):
    """With workers, the one that hangs is replaced and the others' tests go on."""
    limits = ("timeout=1.5", "timeout_method=thread", "faulthandler_timeout=1")
    code, printed = run_pytest(tmp_path, HANGING, "-n", workers, *(f"-o{limit}" for limit in limits))
    assert code == 1
    assert re.search(r'test_some\.py", line 9 in test_hangs', printed)
    assert "test_some.py::test_hangs" in printed
    if workers == "1":
        assert "worker 'gw0' crashed while running 'test_some.py::test_hangs'" in printed
        assert "1 failed, 2 passed" in printed
