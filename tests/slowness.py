"""A test that takes long and is not marked `slow` is an error, and a test that fails is named at once.

Long is what takes long by the clock and by the processor as well: on a machine that others keep busy every test takes
long by the clock, and one that only waits is ended by `timeout`. Both limits are those of a processor of `REFERENCE_S`;
on a slower one they are longer. What else a machine does slows its processors as well, so a test that was long is
judged by their speed at its end, if that is the lower one.

``--until TIME`` begins no test later than that. Those left out are skipped, so they are counted and the reason is said.
"""

import functools
import os
import time

import pytest

SECONDS = pytest.StashKey[float]()
STARTED = pytest.StashKey[float]()
SLOW_LIMIT_S = 900
"""A test marked `slow` may take longer than `timeout` in pyproject.toml says."""
REFERENCE_S = 0.045
"""Processor seconds of a million additions in a Python loop, by definition; LOG.md has one that took twice as long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("slow_test_seconds", "seconds that a test without the marker `slow` may take", default="60")
    parser.addoption("--until", type=float, help="Unix time; tests that have not begun by then are skipped")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("timeout"):
            limit = SLOW_LIMIT_S if item.get_closest_marker("slow") else float(config.getini("timeout") or 0)
            item.add_marker(pytest.mark.timeout(limit * slower()))


def slower_now() -> float:
    """How many times slower than `REFERENCE_S` this processor is, at least 1; takes a tenth of a second."""

    def seconds() -> float:
        start, total = time.process_time(), 0
        for number in range(1_000_000):
            total += number
        return time.process_time() - start

    return max(1.0, min(seconds() for _ in range(3)) / REFERENCE_S)


slower = functools.cache(slower_now)
"""The same when it was first asked for."""


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = processor_seconds()
    until = item.config.getoption("until")
    if until is not None and time.time() > until:
        pytest.skip(f"not begun by {time.strftime('%H:%M:%S', time.localtime(until))}, the time of --until")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    seconds = item.stash[SECONDS] = item.stash.get(SECONDS, 0.0) + call.duration
    seconds = min(seconds, processor_seconds() - item.stash[STARTED])
    limit = float(item.config.getini("slow_test_seconds"))
    if call.when != "teardown" or seconds <= limit or item.get_closest_marker("slow") or not report.passed:
        return report
    limit *= max(slower(), slower_now())
    if seconds <= limit:
        return report
    import jax  # here, for a run of pytest without jax is not to wait for it

    if jax.default_backend() == "cpu":  # on a GPU, the first test of a kernel waits for its compilation
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {seconds:.1f} s with its fixtures, and a test may take {limit:.0f} s: "
            "make it shorter, or mark it `slow`, and it runs in `make test-slow`"
        )
    return report


class Named:
    """Names each test as it fails, so that a run that is ended has told what failed until then."""

    def __init__(self, config: pytest.Config):
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Named(config))
