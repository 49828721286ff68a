"""Where no terminal is, progress is lines, few of them; on a terminal it is tqdm's."""

import io
import sys

import pytest

from kunlun_jax.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds as tqdm sees them."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


@pytest.mark.parametrize("leave", [True, False])
def test_a_line_a_minute_where_no_terminal_is(leave, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in ProgressBar(range(600), desc="train", unit="step", leave=leave):
        clock[0] += 1.0
    text = sys.stderr.getvalue()
    assert "\x1b" not in text
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    assert 10 <= len(lines) <= 12
    assert all(line.startswith("train:") and len(line) <= 100 for line in lines)
    assert "0/600" in lines[0]
    assert not leave or "600/600" in lines[-1]


def test_a_bar_that_moves_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in ProgressBar(range(3), desc="train"):
        pass
    assert sys.stderr.getvalue().count("\r") >= 2


def test_a_bar_that_is_off_writes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in ProgressBar(range(3), disable=True):
        pass
    assert sys.stderr.getvalue() == ""
