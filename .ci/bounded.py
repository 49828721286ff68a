#!/usr/bin/env python3
"""Runs one command within bounds on time and memory, and leaves no process of it behind.

    python3 .ci/bounded.py --minutes 20 --gb 10 -- make test
    python3 .ci/bounded.py --name test --record runs.jsonl -- make test    # adds a line of JSON to the file
    python3 .ci/bounded.py --table runs.jsonl                              # prints those lines as a table

Orphans of the command come back to this process, so that one with a session of its own is found as well. Past a bound
all are sent SIGTERM, and 10 s later SIGKILL. SIGINT, SIGTERM and SIGHUP go on to the command, which has 10 s to end
(--grace), and the end of the process that started this one counts as SIGTERM. The exit status is the command's, 124
past the time, 137 past the memory, 130 after SIGINT and 143 after SIGTERM. Python 3.9 or newer and Linux, nothing else.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

LINGER_S = 2.0  # helpers of multiprocessing end by themselves a moment after the process that started them
INTERVAL_S = 2.0  # to read the memory of twenty processes takes some 50 ms
# Under nohup, SIGHUP stays ignored.
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
STOPPING -= {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
WATCHED = STOPPING | {signal.SIGCHLD}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of <linux/prctl.h>
SI_KERNEL = 0x80  # of <asm-generic/siginfo.h>: sent by the terminal, to the whole group
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?|cases)\b")
SUMMARY = re.compile(r"^=* ?((?:\d+ \w+, )*\d+ \w+) in [\d.]+s\b|^\S+: (\d+ cases, \d+ failed), ")


def say(text):
    """One line to stderr."""
    print(f"bounded: {text}", file=sys.stderr, flush=True)


def descendants():
    """Number -> parent's number of every process that runs below this one; those that ended do not count."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just gone
        parents[int(name)] = (int(parent), state in b"ZX")
    below, todo = {}, [os.getpid()]
    while todo:
        above = todo.pop()
        for number, (parent, ended) in parents.items():
            if parent == above and number not in below:
                todo.append(number)
                below[number] = ended
    return [number for number, ended in below.items() if not ended]


def resident_bytes(numbers):
    """Memory of processes, pages that several share counted once; resident pages where the kernel tells no more."""
    total = 0
    for number in numbers:
        for name, field in (("smaps_rollup", b"Pss:"), ("status", b"VmRSS:")):
            try:
                with open(f"/proc/{number}/{name}", "rb") as file:
                    total += next((int(line.split()[1]) * 1024 for line in file if line.startswith(field)), 0)
                break
            except OSError:
                continue
    return total


def command_of(number):
    """What a process runs, the beginning of it."""
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:100]
    except OSError:
        return ""


def send(number, sent):
    """A signal to a process, which may have just gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, sent)


class Output(threading.Thread):
    """Passes on what the command prints as it comes, and keeps the end of it."""

    def __init__(self, source):
        super().__init__(daemon=True)
        self.source, self.tail, self.counts = source, b"", {}

    def run(self):
        """Until the last process that may print has ended."""
        target = sys.stdout.fileno()
        while chunk := os.read(self.source, 1 << 16):
            lines = (self.tail + chunk).split(b"\n")
            self.tail = lines.pop()[-10_000:]
            for line in lines:
                self.read(re.sub(rb"\x1b\[[\d;]*m|\r", b"", line).decode(errors="replace"))
            while chunk and target is not None:
                try:
                    chunk = chunk[os.write(target, chunk) :]
                except OSError:  # nobody reads any more; the command shall not end of that
                    target = None

    def read(self, line):
        """Takes the numbers of tests from a line that sums up pytest or the compile check."""
        found = SUMMARY.match(line)
        if found and found[2]:  # the compile check prints one for each chip
            cases, failed = (int(n) for n, _ in COUNTS.findall(found[2]))
            self.counts["passed"] = self.counts.get("passed", 0) + cases - failed
            self.counts["failed"] = self.counts.get("failed", 0) + failed
        elif found and COUNTS.search(found[1]):
            self.counts = {name.rstrip("s") if "err" in name else name: int(n) for n, name in COUNTS.findall(found[1])}


class Bounded:
    """A command that runs, and all that it starts."""

    def __init__(self, command, seconds, limit_bytes, grace, tee):
        self.seconds, self.limit_bytes, self.grace, self.peak = seconds, limit_bytes, grace, 0
        self.started, self.status, self.output = time.monotonic(), None, None
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        libc = ctypes.CDLL(None, use_errno=True)
        parent = os.getppid()
        for option, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
            if libc.prctl(option, value, 0, 0, 0):
                raise OSError(ctypes.get_errno(), f"prctl({option})")
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # it went before it was watched
        environment = dict(os.environ)
        if tee and sys.stdout.isatty():
            environment.setdefault("PY_COLORS", "1")
        # In the same process group: the terminal, with its Ctrl-C and Ctrl-Z, stays the command's.
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if tee else {}
        self.child = subprocess.Popen(command, env=environment, preexec_fn=self._fresh_signals, **piped)
        if tee:
            self.output = Output(self.child.stdout.fileno())
            self.output.start()

    @staticmethod
    def _fresh_signals():
        # A shell starts what runs in its background with SIGINT ignored, and Python would leave it so.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def reap(self):
        """Collects who ended, the command and orphans that came back."""
        while True:
            try:
                number, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if number == 0:
                return
            if number == self.child.pid:
                code = os.WTERMSIG(status) + 128 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self.status = self.child.returncode = code

    def wait(self, seconds, until):
        """Waits for `until()`, at most so long; returns whether it came."""
        deadline = time.monotonic() + seconds
        while True:
            self.reap()
            if until():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)

    def end_all(self, grace):
        """SIGTERM to all that runs below, SIGKILL to what is left after `grace` seconds."""
        for number in descendants():
            send(number, signal.SIGTERM)
        self.wait(grace, lambda: not descendants())
        while left := descendants():  # again and again, for one may start another in between
            for number in left:
                send(number, signal.SIGKILL)
            self.wait(0.2, lambda: not descendants())

    def run(self):
        """Returns the exit status, with no process left below."""
        stopped, deadline = None, None
        try:
            stopped = self.watch()
            deadline = time.monotonic() + self.grace
            if stopped is not None and stopped not in (124, 137):
                self.wait(self.grace, lambda: self.status is not None)
        finally:
            if self.status is not None and stopped is None and not self.wait(LINGER_S, lambda: not descendants()):
                names = "; ".join(f"{number} {command_of(number)}" for number in descendants())
                say(f"the command left processes behind, which are ended: {names}")
            self.end_all(self.grace if deadline is None else deadline - time.monotonic())
        if self.output:
            self.output.join(5)
        return self.status if stopped is None else stopped

    def watch(self):
        """Until the command ends, None, or until it is to be stopped, the exit status for that."""
        # Without a bound or a record nobody asks for the memory, and to look at it is not free.
        look = 0.0 if self.output or self.limit_bytes < float("inf") else float("inf")
        while True:
            self.reap()
            if self.status is not None:
                return None
            now = time.monotonic()
            if now >= look:
                resident = resident_bytes(descendants())
                self.peak, look = max(self.peak, resident), time.monotonic() + INTERVAL_S
                if resident > self.limit_bytes:
                    say(f"over its memory: {resident / 1e9:.1f} GB of {self.limit_bytes / 1e9:.1f} GB; ending it")
                    return 137
            if now - self.started > self.seconds:
                say(f"over its time: {now - self.started:.0f} s of {self.seconds:.0f} s; ending it")
                return 124
            info = signal.sigtimedwait(WATCHED, max(min(look, self.started + self.seconds, now + 3600) - now, 0.01))
            if info is not None and info.si_signo in STOPPING:
                number = signal.Signals(info.si_signo)
                say(f"{number.name}: ending the command")
                if info.si_code != SI_KERNEL:  # the terminal has told the command already
                    send(self.child.pid, number)
                return 128 + number


def table(path):
    """The lines of a record, one row each."""
    print(f"{'target':20}{'seconds':>8}{'peak GB':>9}  {'status':10}tests")
    total = 0.0
    with open(path) as file:
        for row in map(json.loads, file):
            total += row["seconds"]
            verdict = "ok" if row["status"] == 0 else f"FAIL {row['status']}"
            tests = ", ".join(f"{number} {name}" for name, number in row["tests"].items())
            print(f"{row['name']:20}{row['seconds']:8.0f}{row['peak_gb']:9.1f}  {verdict:10}{tests}".rstrip())
    print(f"{'all':20}{total:8.0f}")


def main():
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bounded.py", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of wall-clock, no bound unless given")
    parser.add_argument("--gb", type=float, default=float("inf"), help="of memory, 1e9 bytes, no bound unless given")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds from SIGTERM to SIGKILL (%(default)s)")
    parser.add_argument("--name", help="for the record, else the command")
    parser.add_argument("--record", help="file that gets a line of JSON")
    parser.add_argument("--table", help="print this record and run nothing")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if options.table:
        table(options.table)
        return 0
    if not options.command:
        parser.error("no command")
    bounded = Bounded(options.command, options.minutes * 60, options.gb * 1e9, options.grace, tee=bool(options.record))
    status = bounded.run()
    if options.record:
        row = {"name": options.name or " ".join(options.command), "seconds": time.monotonic() - bounded.started}
        row |= {"peak_gb": bounded.peak / 1e9, "status": status, "tests": bounded.output.counts}
        with open(options.record, "a") as file:
            file.write(json.dumps(row) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
