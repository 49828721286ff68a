"""What ptxas, nvdisasm and jax-triton say about a Triton kernel, read from what `triton_worker` prints."""

import re

from pallas_kernels.compile_check.report import Kernel
from pallas_kernels.compile_check.sass import inner_loops

_ENTRY = re.compile(r"Compiling entry function '[^']+' for '([^']+)'")
_LAUNCH = re.compile(r"Launch: (\d+) threads, (\d+) bytes of dynamic shared memory")
_SERIALIZED = re.compile(r"wgmma\.mma_async instructions are serialized.*")


def _total(pattern: str, text: str) -> int:
    return sum(int(number) for number in re.findall(pattern, text))


def parse(output: str) -> list[Kernel]:
    """The kernels in a worker's output, in its order.

    Raises:
      ValueError: the output holds no kernel, or one without its report, its launch or a disassembly that can be
        followed.
    """
    kernels, begin = [], 0
    for launch in _LAUNCH.finditer(output):
        report, begin = output[begin : launch.start()], launch.end()
        entries, registers = _ENTRY.findall(report), re.findall(r"Used (\d+) registers", report)
        if len(entries) != 1 or len(registers) != 1:
            raise ValueError(f"cannot read the report of ptxas: {report[:500]}")
        warning = _SERIALIZED.search(report)
        kernels.append(
            Kernel(
                architecture=entries[0],
                registers=int(registers[0]),
                threads=int(launch[1]),
                spill_stores=_total(r"(\d+) bytes spill stores", report),
                spill_loads=_total(r"(\d+) bytes spill loads", report),
                stack=_total(r"(\d+) bytes stack frame", report),
                shared_memory=int(launch[2]) + _total(r"(\d+) bytes smem", report),
                tensor_memory_columns=0,
                serialized=warning[0] if warning else "",
                loops=inner_loops(report),
            )
        )
    if not kernels or _ENTRY.search(output, begin):
        raise ValueError("the compiler reported no kernel" if not kernels else "a kernel without a launch")
    return kernels
