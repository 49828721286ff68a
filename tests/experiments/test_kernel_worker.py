"""Workers of the kernel benchmark: they crash, hang and raise, and the parent goes on with the rest."""

import os
import signal
import time

import pytest

from experiments.kernel_benchmark.worker import Message, OutOfTime, Worker, collect


def trouble(items):
    """Job: each item is what happens at it; others give the process that was at them."""
    for item in items:
        yield Message((item,))
        if item == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hangs":
            time.sleep(60)
        if item == "raises":
            raise RuntimeError("unforeseen")
        yield Message((item,), {"process": os.getpid()})
        if item == "loses the device":
            raise RuntimeError("no answer")


def dies_at_once(items):
    """Job: it says nothing."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield Message(tuple(items), {})


def asleep(items):
    """Job: longer than its limit in all, and never silent for so long."""
    for _ in range(8):
        time.sleep(0.3)
        yield Message(tuple(items), begins=False)
    yield Message(tuple(items), {"late": True})


def test_what_takes_the_worker_with_it_gets_a_reason_and_the_rest_is_measured(capfd):
    items = ["first", "crashes", "second", "loses the device", "third", "hangs", "fourth", "raises", "fifth"]
    found = {}
    with Worker(limit_s=2.0) as worker:
        collect(items, lambda left: worker.ask(trouble, left), found.__setitem__)
        pids = [found[name]["process"] for name in ("first", "second", "third", "fourth", "fifth")]
        collect(["sixth"], lambda left: worker.ask(trouble, left), found.__setitem__)
        assert found["sixth"]["process"] == pids[-1]
        collect(["a", "b"], lambda left: worker.ask(dies_at_once, left), found.__setitem__)
        collect(["c"], lambda left: worker.ask(asleep, left), found.__setitem__)
    assert len(set(pids)) == 5 and found["loses the device"]["process"] == pids[1]
    assert found["crashes"] == {"cannot_run": "its process ended with -11 (SIGSEGV)"}
    assert found["hangs"] == {"cannot_run": "no result within 2 s; its process was ended"}
    assert found["raises"] == {"cannot_run": "RuntimeError: unforeseen"}
    assert found["a"] == found["b"] == {"cannot_run": "its process ended with -9 (SIGKILL)"}
    assert found["c"] == {"late": True}
    assert "RuntimeError: unforeseen" in capfd.readouterr().err
    for pid in set(pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_nothing_new_is_begun_past_the_deadline():
    def job(left):
        yield Message(("first",))
        yield Message(("first",), {})
        time.sleep(0.1)
        yield Message(("first",), begins=False)  # what has begun goes on
        yield Message(("second",))
        pytest.fail("it went on")

    found = {}
    with pytest.raises(OutOfTime):
        collect(["first", "second"], job, found.__setitem__, time.monotonic() + 0.05)
    assert found == {"first": {}}
    with pytest.raises(OutOfTime):
        collect(["third"], lambda left: pytest.fail("it began"), found.__setitem__, time.monotonic() - 1)
    collect([], job, found.__setitem__, time.monotonic() - 1)
