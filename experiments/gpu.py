"""Everything that needs a GPU, in pieces: ``python -m experiments.gpu``, or ``make gpu``. At most 9 minutes.

1. The contract of the Mosaic kernels on the GPU: gdpa; windows and seeds.
2. Block sizes of all three operators: ``python -m experiments.kernels tune``.
3. The benchmark of ours and of what else JAX calls: ``python -m experiments.kernels``.
4. Peers outside of JAX: PyTorch's attention, Meta's GDPA where its checkout is named.
5. Window attention from 512 to 32k rows: ``python -m experiments.kernels scaling``.
6. The Triton kernels' contract, the operators' other implementations, the other kernel tests.

By name alone (``--only scaling_law``, or ``make gpu GPU_ONLY=scaling_law``), with 9 minutes of their own: the scaling
law of Kunlun and InterFormer, ``python -m experiments.scaling_law --budget gpu``, and ``scaling_speed``, the speed of
its models in turn, which is the law's other factor. They train, so they need all of the core.

Each piece has a limit and is ended at it, writes as it goes, and continues in the next run where it stopped: a test
that passed is not run again for the same sources (`experiments.passed_tests`); tuning and benchmark skip what their
files have, and begin with the shapes that matter most. A piece that fails does not keep the next from running. Logs are
in ``runs/gpu``. The exit code is 0 if all passed, which the summary at the end says piece by piece. Only the standard
library is needed to start; a piece that lacks a package says which.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.files import digest

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Piece:
    """One command with its limit.

    Attributes:
      name: for the log and the summary.
      command: arguments of this Python.
      limit_s: seconds after which it is ended.
      once: whether it is tests of the contract, of which those that passed are not run again for the same sources.
      named: whether it is run only where it is named.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    once: bool = False
    named: bool = False


def _tests(name: str, limit_s: float, *paths: str) -> Piece:
    """The piece of some contract tests in tests/pallas_kernels."""
    chosen = [x if x.startswith("-") else f"tests/pallas_kernels/{x}" for x in paths]
    # The test under shard_map needs two devices.
    command = ("pytest", "-v", "-p", "experiments.passed_tests", "-k", "not shard_map", *chosen)
    return Piece(f"contract-{name}", command, limit_s, once=True)


def pieces(library: Path | None) -> tuple[Piece, ...]:
    """All of them; budgets end well before limits, so that what has begun ends by itself and is written.

    scaling_speed has no budget: the size that it is at when it is ended is measured again.
    """
    kernels, limit = "experiments.kernels", ("--call-limit-s", "45")
    gdpa, softmax = "mosaic/test_gdpa_contract.py", "mosaic/test_softmax_contract.py"
    checkout = ("--peers.ads-kernel-library", str(library)) if library else ()
    return (
        _tests("gdpa", 75, gdpa),
        _tests("softmax", 75, softmax),
        Piece("tune", (kernels, "tune", "--budget-s", "65", *limit), 95),
        Piece("kernels", (kernels, "--where", "inside", "--budget-s", "60", *limit), 95),
        Piece("peers", (kernels, "--where", "outside", "--budget-s", "25", *limit, *checkout), 85),
        Piece("scaling", (kernels, "scaling", "--budget-s", "15", "--call-limit-s", "25"), 45),
        _tests("triton", 30, "triton"),
        _tests("operators", 20, "test_contract.py"),
        _tests("others", 20, "mosaic", "--ignore", gdpa, "--ignore", softmax),
        Piece("scaling_law", ("experiments.scaling_law", "--budget", "gpu"), 540, named=True),
        Piece("scaling_speed", ("experiments.scaling_speed", "--budget", "gpu"), 540, named=True),
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
    if piece.once:
        changes["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        sources = digest(REPOSITORY / "pallas_kernels", REPOSITORY / "tests/pallas_kernels")
        changes |= {"KUNLUN_PASSED_TESTS": str(folder / f"{piece.name}.tests"), "KUNLUN_SOURCES": sources}
    return os.environ | changes


def run(piece: Piece, folder: Path) -> tuple[str, float]:
    """Runs a piece, its output to the terminal and to its log; returns what came of it, and seconds."""
    log, began = folder / f"{piece.name}.log", time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *piece.command],
        cwd=REPOSITORY,
        env=environment(piece, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process, subprocess.Popen(["tee", "-a", str(log)], stdin=process.stdout) as pump:
        try:
            code = process.wait(piece.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # the piece, and workers that may outlive it
                os.killpg(process.pid, signal.SIGKILL)
        try:
            pump.wait(5)
        except subprocess.TimeoutExpired:  # one that left the session holds the pipe
            pump.kill()
    seconds = time.monotonic() - began
    if code is None:
        return f"FAILED: ended at its limit of {piece.limit_s:g} s; another run continues", seconds
    if code:
        return f"FAILED: exit code {code}, see {log.name}", seconds
    return "passed", seconds


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
        if piece.name not in args.only if args.only else piece.named:
            continue
        print(f"=== {piece.name}, at most {piece.limit_s:g} s: python -m {' '.join(piece.command)}", flush=True)
        results[piece.name] = run(piece, args.logs)
    print("=== summary")
    for name, (outcome, seconds) in results.items():
        print(f"{name:<18} {seconds:6.0f} s  {outcome}")
    return 1 if any(outcome.startswith("FAILED") for outcome, _ in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
