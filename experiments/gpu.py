"""Everything that needs a GPU, in three pieces: ``python -m experiments.gpu``, or ``make gpu``. At most 9 minutes.

1. The contract of the operators and the tests of the Mosaic kernels, on the GPU.
2. Block sizes: ``python -m experiments.kernels tune``.
3. The benchmark: ``python -m experiments.kernels``.

Each piece has a limit and is ended at it, writes as it goes, and continues in the next run where it stopped: tests
that failed come first, and a contract that passed is not run again for the same sources; tuning and benchmark skip what
their files have. A piece that fails does not keep the next from running. Logs are in ``runs/gpu``. The exit code is 0
if all three passed, which the summary at the end says piece by piece. Only the standard library is needed to start; a
piece that lacks a package says which.
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


def pieces(library: Path | None) -> tuple[Piece, ...]:
    """The three; budgets end well before limits, so that what has begun ends by itself and is written."""
    tests = [name for name in ("test_contract.py", "mosaic") if (REPOSITORY / "tests/pallas_kernels" / name).exists()]
    peers = ("--peers.ads-kernel-library", str(library)) if library else ()
    return (
        # The test under shard_map needs two devices.
        Piece(
            "contract",
            ("pytest", "-v", "--ff", "-k", "not shard_map", *(f"tests/pallas_kernels/{name}" for name in tests)),
            180,
            once=True,
        ),
        Piece("tune", ("experiments.kernels", "tune", "--budget-s", "115", "--call-limit-s", "45"), 150),
        Piece("kernels", ("experiments.kernels", "--budget-s", "130", "--call-limit-s", "60", *peers), 180),
    )


def environment(piece: Piece) -> dict[str, str]:
    """Environment of a piece: JAX on the GPU, and without TF32 where float32 is compared with a definition."""
    changes = {
        "JAX_PLATFORMS": os.environ.get("KUNLUN_GPU_PLATFORM", "cuda,cpu"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if piece.name == "contract":
        changes["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
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
            env=environment(piece),
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
    parser.add_argument("--only", nargs="*", default=(), help="names of pieces: contract, tune, kernels")
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
        print(f"{name:<10} {seconds:6.0f} s  {outcome}")
    return 1 if any(outcome.startswith("FAILED") for outcome, _ in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
