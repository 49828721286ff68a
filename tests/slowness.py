"""A test that takes long and is not marked `slow` is an error, so that `make test` stays as short as it is."""

import pytest

SECONDS = pytest.StashKey[float]()
SLOW_LIMIT_S = 900
"""A test marked `slow` may take longer than `timeout` in pyproject.toml says."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("slow_test_seconds", "seconds that a test without the marker `slow` may take", default="60")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    seconds = item.stash[SECONDS] = item.stash.get(SECONDS, 0.0) + call.duration
    limit = float(item.config.getini("slow_test_seconds"))
    if call.when != "teardown" or seconds <= limit or item.get_closest_marker("slow") or not report.passed:
        return report
    import jax  # here, for a run of pytest without jax is not to wait for it

    if jax.default_backend() == "cpu":  # on a GPU, the first test of a kernel waits for its compilation
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {seconds:.1f} s with its fixtures, and a test may take {limit:.0f} s: "
            "make it shorter, or mark it `slow`, and it runs in `make test-slow`"
        )
    return report
