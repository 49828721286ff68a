"""Compiles every kernel of the catalogue for chips that are not there; fails on those that would be slow or not run.

    make kernels                                                     # all, for every chip
    python -m pallas_kernels.compile_check --chip h100 --select dkv   # some

Each case is compiled by its own process: Mosaic's kernels for h100 and b200, Triton's for triton-sm80 and so on. The
latter are lowered by jax-triton and assembled by the ptxas that JAX runs. Prints registers, spills, shared memory,
tensor memory and the instructions of the loop with the score function, and predicts the time of some kernels
(`predict`); after a run over a chip's whole catalogue, writes that and the instructions of each inner loop by kind to
``experiments/results/compile/CHIP.json``. The exit status is 1 if a kernel spills, does not fit, does not compile, or
has a longer loop than is stored there (`budget`), 2 if there was nothing to compile or to compile with. The compiler is
not part of the environment, since with it JAX looks for a GPU at each start; `make kernels` installs it separately.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check import budget, catalogue, triton_catalogue, triton_report, work
from pallas_kernels.compile_check.catalogue import Case
from pallas_kernels.compile_check.report import DUMPS, parse
from pallas_kernels.compile_check.result import (
    Result,
    backward_lines,
    heading,
    loop_lines,
    prediction_line,
    rows,
    window_lines,
)
from pallas_kernels.triton import target as triton_target

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "experiments" / "results" / "compile"
COMPILER_VARIABLE = "KUNLUN_CUDA_COMPILER"
TIMEOUT = 600
"""Seconds after which a compilation counts as failed; most take 2 to 5."""
ALL_CHIPS = catalogue.CHIPS | triton_catalogue.CHIPS


class CompilerMissing(RuntimeError):
    """The compiler is not installed, or is that of another jax."""


def compiler(folder: str | Path | None = None) -> Path:
    """The folder with XLA's CUDA plugin, ptxas and nvdisasm.

    Args:
      folder: None for the environment variable KUNLUN_CUDA_COMPILER, or, where that is not set, ``.cuda-compiler`` in
        the repository.

    Raises:
      CompilerMissing: there is none, or it is not that of the running jax; the message says what to type.
    """
    folder = Path(folder or os.environ.get(COMPILER_VARIABLE) or REPOSITORY / ".cuda-compiler").resolve()
    versions = [d.version for d in importlib.metadata.distributions(name="jax-cuda13-plugin", path=[str(folder)])]
    if not versions or not all(_ptxas(folder).with_name(tool).is_file() for tool in ("ptxas", "nvdisasm")):
        raise CompilerMissing(f"no CUDA compiler in {folder}: `make kernels` installs it, 0.3 GB of downloads")
    if versions != [jax.__version__]:
        raise CompilerMissing(
            f"the CUDA compiler in {folder} is of jax {versions[0]}, and this is jax {jax.__version__}: "
            "requirements/compiler.txt and the environment must have the same version; then type `make kernels`"
        )
    return folder


def _ptxas(folder: Path) -> Path:
    return folder / "nvidia" / "cu13" / "bin" / "ptxas"


def cases_of(chip: Chip) -> Sequence[Case | triton_catalogue.Case]:
    """Every case for a chip of `ALL_CHIPS`."""
    return triton_catalogue.cases(chip) if chip.name in triton_catalogue.CHIPS else catalogue.cases(chip)


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that compiles with the compiler in `folder`."""
    # Unbuffered, so that Python's output does not land in the middle of the compiler's.
    found = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "CUDA_ROOT": str(_ptxas(folder).parent.parent),
    }
    found["JAX_TRACEBACK_FILTERING"] = "off"  # otherwise the last lines are about the filtering
    paths = [str(REPOSITORY), str(folder), os.environ.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Reports in files, other compiler options, or kernels from a cache would not be the check that was asked for.
    for name in ("MOSAIC_GPU_DUMP_TO", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        found.pop(name, None)
    return found


def check(case: Case | triton_catalogue.Case, chip: Chip, folder: Path) -> Result:
    """Compiles a case in its own process, which may fail in any way.

    Args:
      case: any case, in the catalogue or not; `build` is a function of a module.
      chip: what to compile for.
      folder: see `compiler`.
    """
    if isinstance(case, triton_catalogue.Case):
        worker, read = ("pallas_kernels.compile_check.triton_worker", str(_ptxas(folder))), triton_report.parse
    else:
        worker, read = ("pallas_kernels.compile_check.worker", chip.name), parse
    started = time.perf_counter()
    try:
        process = subprocess.run(
            [sys.executable, "-m", *worker],
            input=pickle.dumps(case),
            env=environment(folder) | dict.fromkeys(DUMPS, "1"),
            cwd=REPOSITORY,
            capture_output=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Result(case.name, (), (f"did not compile in {TIMEOUT} s",), time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if process.returncode:
        last = last_lines(process.stderr.decode(errors="replace"))
        return Result(case.name, (), (f"did not compile, exit status {process.returncode}:\n{last}",), seconds)
    try:
        kernels = read(process.stdout.decode(errors="replace"))
    except ValueError as error:
        return Result(case.name, (), (str(error),), seconds)
    faults = tuple(fault for k in kernels for fault in k.faults(chip))
    result = Result(case.name, tuple(kernels), faults, seconds, case.scores)
    if isinstance(case, Case):
        loops = kernels[-1].loops
        result = dataclasses.replace(result, prediction=case.predicted(loops, chip), peer=case.of_peer(loops, chip))
    return result


def last_lines(errors: str) -> str:
    """What the compiler complained of, and the end of the traceback.

    Paths start at their packages: these lines go into a file that others read.
    """
    errors = re.sub(r'File "[^"]*/(?:site-packages|lib/python3\.\d+)/', 'File "', errors)
    errors = errors.replace(f"{REPOSITORY}{os.sep}", "").partition("=== Source Location Trace")[0]
    lines = errors.strip().splitlines()
    return "\n".join([line for line in lines[:-8] if re.search(r"\berror: |^LLVM ERROR", line)][:3] + lines[-8:])


def check_all(cases: Sequence[Case | triton_catalogue.Case], chip: Chip, folder: Path, jobs: int) -> Iterator[Result]:
    """`check` of each case, `jobs` at once, in the order of the cases."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(lambda case: check(case, chip, folder), cases)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def write(path: Path, chip: Chip, results: Sequence[Result], folder: Path, commit: str) -> bool:
    """Writes the results as JSON, unless the file holds the same kernels by the same compiler; returns whether it did.

    Compile times are left out and an unchanged file keeps its commit, so that a check does not change tracked files.
    """
    release = subprocess.run([_ptxas(folder), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release \S+, V(\S+)", release)
    made_by = {
        "command": f"python -m pallas_kernels.compile_check --chip {chip.name}",
        "commit": commit,
        "jax": jax.__version__,
        "ptxas": version[1] if version else release.strip(),
    }
    if chip.name in triton_catalogue.CHIPS:
        made_by |= {name: importlib.metadata.version(name) for name in ("triton", "jax-triton")}
    cases = {
        r.case: {"scores": r.scores, "kernels": [*map(dataclasses.asdict, r.kernels)], "faults": r.faults}
        | {name: p.row() for name, p in (("predicted", r.prediction), ("tokamax_tiles", r.peer)) if p}
        for r in results
    }
    content = {"chip": chip.name, "device_kind": chip.device_kind, "made_by": made_by}
    if any(r.prediction for r in results):
        content["predicted_for"] = work.described()
    content["cases"] = cases
    text = json.dumps(content, indent=1) + "\n"
    if path.exists():
        before = json.loads(path.read_text())
        before["made_by"]["commit"] = made_by["commit"]
        if before == json.loads(text):
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def _either(select: Sequence[str]) -> str:
    return " or ".join(map(repr, select))


def selected(chip: Chip, select: Sequence[str], *, one_of_each: bool = False) -> list[Case | triton_catalogue.Case]:
    """The cases of a chip with any of `select` in their name, or all.

    Args:
      chip: one of `ALL_CHIPS`.
      select: parts of names; empty for all cases.
      one_of_each: of these, only the last of each operator and pass: the catalogue has plain forms first and those with
        most branches (ragged, short, causal) last.
    """
    cases = [case for case in cases_of(chip) if not select or any(part in case.name for part in select)]
    return [*{(case.operator, case.direction): case for case in cases}.values()] if one_of_each else cases


def run(
    chip: Chip,
    select: Sequence[str],
    jobs: int,
    folder: Path,
    output: Path,
    commit: str,
    *,
    one_of_each: bool = False,
    each_loop: bool = False,
    accept_longer_loops: bool = False,
) -> list[Result]:
    """Checks the cases of a chip that are `selected`; prints a table and writes JSON if these are all.

    Args:
      chip: one of `ALL_CHIPS`.
      select: see `selected`.
      jobs: processes at once.
      folder: see `compiler`.
      output: folder of the JSON files, the budget among them.
      commit: of the code, to be stored.
      one_of_each: see `selected`.
      each_loop: print `loop_lines`, too.
      accept_longer_loops: store loops that are longer than the budget allows, and let them pass.
    """
    cases, whole = selected(chip, select, one_of_each=one_of_each), not select and not one_of_each
    if not cases:
        print(f"{chip.name}: no kernel" + (f" with {_either(select)} in its name" if select else ""))
        return []
    width = max(len(case.name) for case in cases)
    print(
        f"{chip.name}, {chip.architecture}: registers and spilled bytes of a thread; shared memory of a block in bytes,"
    )
    print(
        "static and dynamic, as launched; columns of tensor memory; instructions of the loop with the score function,"
    )
    print("of a thread in a trip and for each of its scores; seconds of the whole process")
    if chip.name in catalogue.CHIPS:
        print("predicted, not measured: milliseconds for the shapes below, by `predict.RATES` and the datasheet")
        for name, sizes in work.described().items():
            print(f"  {name}: " + ", ".join(f"{field} {value}" for field, value in sizes.items()))
    print(heading(width), flush=True)
    started, results, path = time.perf_counter(), [], output / f"{chip.name}.json"
    stored = budget.stored(path)
    with tqdm(total=len(cases), desc=chip.name, unit="kernel", dynamic_ncols=True, disable=None) as bar:
        for result in check_all(cases, chip, folder, jobs):
            before = stored.get(result.case, ())
            longer = () if accept_longer_loops else tuple(budget.worse(result.kernels, before))
            result = dataclasses.replace(result, longer=longer, budgeted=any(before))
            results.append(result)
            printed = rows(result, width) + (loop_lines(result) if each_loop else [])
            if result.prediction:
                printed.append(prediction_line(result.prediction, chip))
            for row in printed:
                bar.write(row, file=sys.stdout)
            bar.update()
    for line in (*backward_lines(cases, results, chip), *window_lines(cases, results, chip)):
        print(line)
    failed = sum(bool(result.faults or result.longer) for result in results)
    print(f"{chip.name}: {len(results)} cases, {failed} failed, {time.perf_counter() - started:.0f} s")
    if whole and any(result.longer for result in results):
        print(f"{path}: not written, for it is the budget that was exceeded")
    elif whole:
        print(f"{path}: {'written' if write(path, chip, results, folder, commit) else 'unchanged'}")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.compile_check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--chip", nargs="+", choices=ALL_CHIPS, default=list(ALL_CHIPS), help="chips, all unless given")
    parser.add_argument(
        "--select",
        nargs="+",
        default=(),
        metavar="SUBSTRING",
        help="only cases with one of these in their name; writes no JSON",
    )
    parser.add_argument(
        "--one-of-each",
        action="store_true",
        help="only the last case of each operator and pass, of those selected; writes no JSON",
    )
    parser.add_argument("--each-loop", action="store_true", help="print the instructions of each inner loop by kind")
    parser.add_argument(
        "--accept-longer-loops",
        action="store_true",
        help="let loops pass that are longer than stored; store them, if every case is compiled",
    )
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes at once (%(default)s)")
    parser.add_argument(
        "--compiler", help=f"folder of the CUDA compiler, else {COMPILER_VARIABLE}, else .cuda-compiler"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON files (%(default)s)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    try:
        folder = compiler(options.compiler)
        reason = triton_target.missing() if set(options.chip) & set(triton_catalogue.CHIPS) else None
        if reason is not None:
            raise CompilerMissing(reason)
    except CompilerMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    commit = _commit()  # before the results of a chip are a change
    results = [
        (chip, result)
        for chip in options.chip
        for result in run(
            ALL_CHIPS[chip],
            options.select,
            options.jobs,
            folder,
            options.output,
            commit,
            one_of_each=options.one_of_each,
            each_loop=options.each_loop,
            accept_longer_loops=options.accept_longer_loops,
        )
    ]
    if not results:
        print(f"error: no case has {_either(options.select)} in its name", file=sys.stderr)
        return 2
    failed = [(chip, result) for chip, result in results if result.faults or result.longer]
    for chip, result in failed:
        print(f"FAILED {chip} {result.case}: " + "; ".join((*result.faults, *result.longer)), file=sys.stderr)
    return 1 if failed else 0
