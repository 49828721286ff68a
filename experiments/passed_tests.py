"""A pytest plugin that does not run again what has passed: ``pytest -p experiments.passed_tests``.

For tests that have less time than they need: the environment variable ``KUNLUN_PASSED_TESTS`` names a file, and
``KUNLUN_SOURCES`` what its results hold for. Each test that passes is in the file before the next begins, so a run that
is ended continues in the next one. Results of other sources are forgotten. Without the variables nothing happens.
"""

import os
from pathlib import Path

import pytest


class PassedTests:
    """Deselects tests that passed for the same sources, and notes those that pass.

    Args:
      path: file with the sources in its first line and the name of a test in each other.
      sources: what results hold for.
    """

    def __init__(self, path: Path, sources: str):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.passed = set(lines[1:]) if lines[:1] == [sources] else set()
        self.left_out, self.failed = 0, set()
        if not self.passed:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{sources}\n")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out what has passed."""
        done = [item for item in items if item.nodeid in self.passed]
        self.left_out = len(done)
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in self.passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes a test that passed in setup, call and teardown."""
        if not report.passed:
            self.failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self.failed:
            with self.path.open("a") as file:
                file.write(f"{report.nodeid}\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Nothing left to run is no failure."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.left_out:
            session.exitstatus = pytest.ExitCode.OK


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin where the environment asks for it."""
    path, sources = os.environ.get("KUNLUN_PASSED_TESTS"), os.environ.get("KUNLUN_SOURCES")
    if path and sources:
        config.pluginmanager.register(PassedTests(Path(path), sources), "kunlun-passed-tests")
