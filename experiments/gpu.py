"""Everything that needs a GPU, in pieces: ``python -m experiments.gpu``, or ``make gpu``. At most 9 minutes.

1. The contract of the Mosaic kernels on the GPU: gdpa; windows and seeds.
2. Block sizes of all three operators: ``python -m experiments.kernels tune``.
3. The benchmark of ours and of what runs in the same process: ``python -m experiments.kernels``.
4. Peers in processes of their own: PyTorch's attention, Meta's GDPA where its checkout is named.
5. Window attention from 512 to 32k rows: ``python -m experiments.kernels scaling``.
6. The Triton kernels' contract where there are any, the operators' other implementations, the other kernel tests.

Each piece has a limit and is ended at it, writes as it goes, and continues in the next run where it stopped: a test
that passed is not run again for the same sources (`experiments.passed_tests`); tuning and benchmark skip what their
files have, and begin with the shapes that matter most. A piece that fails does not keep the next from running. Logs are
in ``runs/gpu``. The exit code is 0 if all passed, which the summary at the end says piece by piece. Only the standard
library is needed to start; a piece that lacks a package says which.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
AGAIN = 75
"""Exit code of a piece that lost the device and wants a new process; see `experiments.kernel_benchmark.run`."""
GRACE_S = 15
"""Seconds between asking a piece to stop and ending it."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One command with its limit.

    Attributes:
      name: for the log and the summary.
      command: arguments of this Python.
      limit_s: seconds after which it is ended.
      once: whether a pass holds for the same sources, so that another run skips it.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    once: bool = False


_CONTRACTS = ("mosaic/test_gdpa_contract.py", "mosaic/test_softmax_contract.py")
TESTS = {
    "gdpa": (_CONTRACTS[:1], 75),
    "softmax": (_CONTRACTS[1:], 75),
    "triton": (("triton",), 30),
    "operators": (("test_contract.py",), 20),
    "others": (("mosaic", "--ignore", _CONTRACTS[0], "--ignore", _CONTRACTS[1]), 20),
}
"""Contract tests by name: what of tests/pallas_kernels, and seconds."""


def _tests(name: str) -> tuple[Piece, ...]:
    """The piece of some contract tests, none where they do not exist."""
    folder = "tests/pallas_kernels"
    (first, *rest), limit_s = TESTS[name]
    if not (REPOSITORY / folder / first).exists():
        return ()
    chosen = [x if x.startswith("-") else f"{folder}/{x}" for x in (first, *rest)]
    # The test under shard_map needs two devices.
    command = ("pytest", "-v", "-p", "experiments.passed_tests", "-k", "not shard_map", *chosen)
    return (Piece(f"contract-{name}", command, limit_s, once=True),)


def pieces(library: Path | None) -> tuple[Piece, ...]:
    """All of them; budgets end well before limits, so that what has begun ends by itself and is written."""
    kernels, limit = "experiments.kernels", ("--call-limit-s", "45")
    checkout = ("--peers.ads-kernel-library", str(library)) if library else ()
    return (
        *_tests("gdpa"),
        *_tests("softmax"),
        Piece("tune", (kernels, "tune", "--budget-s", "65", *limit), 95),
        Piece("kernels", (kernels, "--where", "inside", "--budget-s", "60", *limit), 95),
        Piece("peers", (kernels, "--where", "outside", "--budget-s", "25", *checkout), 85),
        Piece("scaling", (kernels, "scaling", "--budget-s", "15", "--call-limit-s", "25"), 45),
        *_tests("triton"),
        *_tests("operators"),
        *_tests("others"),
    )


def environment(piece: Piece, folder: Path) -> dict[str, str]:
    """Environment of a piece: JAX on the GPU, and without TF32 where float32 is compared with a definition.

    `folder` is that of the logs.
    """
    changes = {
        "JAX_PLATFORMS": os.environ.get("KUNLUN_GPU_PLATFORM", "cuda,cpu"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if piece.name.startswith("contract"):
        changes["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        changes |= {"KUNLUN_PASSED_TESTS": str(folder / f"{piece.name}.tests"), "KUNLUN_SOURCES": sources()}
    return os.environ | changes


def sources() -> str:
    """A digest of kernels and tests."""
    digest = hashlib.sha256()
    for folder in ("pallas_kernels", "tests/pallas_kernels"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def run(piece: Piece, folder: Path) -> tuple[str, float]:
    """Runs a piece, its output to the terminal and to its log; returns what came of it, and seconds."""
    done, log = folder / f"{piece.name}.passed", folder / f"{piece.name}.log"
    if piece.once and done.exists() and json.loads(done.read_text()) == sources():
        return "passed before, for the same sources", 0.0
    began, attempts = time.monotonic(), 0
    while True:
        attempts += 1
        left = piece.limit_s - (time.monotonic() - began)
        code, timed_out = _run_once(piece, log, left)
        seconds = time.monotonic() - began
        if code == AGAIN and not timed_out and attempts < 4 and seconds < piece.limit_s - 30:
            print(f"=== {piece.name}: the device was lost; once more", flush=True)
            continue
        break
    if timed_out:
        return f"FAILED: ended at its limit of {piece.limit_s:g} s; another run continues", seconds
    if code:
        return f"FAILED: exit code {code}, see {log.name}", seconds
    if piece.once:
        done.write_text(json.dumps(sources()))
    return "passed", seconds


def _run_once(piece: Piece, log: Path, limit_s: float) -> tuple[int, bool]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *piece.command],
            cwd=REPOSITORY,
            env=environment(piece, log.parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        pump = subprocess.Popen(["tee", "-a", str(log)], stdin=process.stdout)
        assert process.stdout is not None
        process.stdout.close()
        timed_out = False
        try:
            process.wait(max(1.0, limit_s - GRACE_S))
        except subprocess.TimeoutExpired:
            timed_out = True
            _stop(process, signal.SIGTERM)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _stop(process, signal.SIGKILL)
                process.wait()
        try:
            pump.wait(5)
        except subprocess.TimeoutExpired:  # a process of the piece outlived it and still holds the pipe
            _stop(process, signal.SIGKILL)
            pump.terminate()
        file.write(b"\n")
    return process.returncode, timed_out


def _stop(process: subprocess.Popen, number: int) -> None:
    """Signals a piece with its own children, which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def main(arguments: list[str] | None = None) -> int:
    """Runs the pieces and sums up; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ads-kernel-library", type=Path, help="checkout of facebookresearch/ads_model_kernel_library")
    parser.add_argument("--only", nargs="*", default=(), help="names of pieces, e.g. contract-softmax kernels")
    parser.add_argument("--logs", type=Path, default=REPOSITORY / "runs/gpu", help="folder of the logs")
    args = parser.parse_args(arguments)
    args.logs.mkdir(parents=True, exist_ok=True)
    results = {}
    for piece in pieces(args.ads_kernel_library):
        if args.only and piece.name not in args.only:
            continue
        print(f"=== {piece.name}, at most {piece.limit_s:g} s: python -m {' '.join(piece.command)}", flush=True)
        results[piece.name] = run(piece, args.logs)
    print("=== summary")
    for name, (outcome, seconds) in results.items():
        print(f"{name:<18} {seconds:6.0f} s  {outcome}")
    return 1 if any(outcome.startswith("FAILED") for outcome, _ in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
