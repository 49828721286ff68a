"""Nothing that a bounded command starts outlives it, whatever ends it."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import processes

BOUNDED = Path(__file__).resolve().parent.parent / ".ci" / "bounded.py"

# One child, and one with a session of its own that ignores SIGTERM; prints their numbers and its own.
FAMILY = """
import os, signal, subprocess, sys, time
sleep = "import time; time.sleep(60)"
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); " + sleep
child = subprocess.Popen([sys.executable, "-S", "-c", sleep])
other = subprocess.Popen([sys.executable, "-S", "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
other.stdout.readline()
print(os.getpid(), child.pid, other.pid, flush=True)
"""
STAYS = FAMILY + "time.sleep(60)\n"


def command(*options: str, program: str) -> list[str]:
    return [sys.executable, str(BOUNDED), "--grace", "0.5", *options, "--", sys.executable, "-S", "-c", program]


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def none_left(printed: str) -> bool:
    numbers = [int(number) for number in printed.split()]
    assert len(numbers) == 3
    return not any(map(alive, numbers))


def test_the_status_and_the_output_are_those_of_the_command(tmp_path):
    program = "print('== 3 passed, 1 skipped in 2.50s =='); print('h100: 5 cases, 1 failed, 3 s'); raise SystemExit(7)"
    assert processes.run(command(program="raise SystemExit(7)")).returncode == 7
    record = tmp_path / "record.jsonl"
    for name, printed in (("tests", program), ("fine", "pass")):
        done = processes.run(command("--name", name, "--record", str(record), program=printed))
        assert done.returncode == (7 if name == "tests" else 0)
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(row["name"], row["status"]) for row in rows] == [("tests", 7), ("fine", 0)]
    assert rows[0]["tests"] == {"passed": 7, "skipped": 1, "failed": 1} and rows[1]["tests"] == {}
    assert all(0 < row["seconds"] < 60 for row in rows)
    shown = processes.run([sys.executable, str(BOUNDED), "--table", str(record)]).stdout
    assert "FAIL 7" in shown and "7 passed, 1 skipped, 1 failed" in shown


def test_output_comes_as_it_is_printed(tmp_path):
    program = "import time; print('first', flush=True); time.sleep(60)"
    with processes.Process(command("--record", str(tmp_path / "record"), program=program)) as process:
        assert process.line() == "first\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def test_past_its_time():
    done = processes.run(command("--minutes", "0.02", program=STAYS))
    assert done.returncode == 124 and "over its time: 1 s of 1 s" in done.stderr
    assert none_left(done.stdout)


def test_past_its_memory():
    done = processes.run(command("--gb", "0.2", program="x = b'1' * 400_000_000\nimport time; time.sleep(60)"))
    assert done.returncode == 137 and "GB of 0.2 GB; ending it" in done.stderr


def test_what_a_command_leaves_behind_is_ended_and_said():
    done = processes.run(command(program=FAMILY))
    assert done.returncode == 0 and "left processes behind" in done.stderr
    assert none_left(done.stdout)


@pytest.mark.parametrize(("sent", "to_the_group"), [("SIGINT", False), ("SIGTERM", False), ("SIGTERM", True)])
def test_a_signal_ends_all(sent, to_the_group):
    number = signal.Signals[sent]
    with processes.Process(command(program=STAYS)) as process:
        printed = process.line()
        (os.killpg if to_the_group else os.kill)(process.pid, number)
        assert process.wait(20) == 128 + number
    assert none_left(printed)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_whoever_started_it_ends_all(sent):
    """As of a make that is told to end, or killed."""
    starter = ["bash", "-c", '"$@"; true', "bash", *command(program=STAYS)]
    with processes.Process(starter) as process:
        printed = process.line()
        process.send_signal(sent)
        process.wait(20)
        deadline = time.monotonic() + 10
        while not none_left(printed) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert none_left(printed)
