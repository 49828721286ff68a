"""What the compiler says about a kernel, read from its output, and which of it is a fault.

Mosaic prints, where environment variables ask for it (`DUMPS`):

- ptxas' report: registers, spills, stack frame, static shared memory;
- the host code, whose call of `mosaic_gpu_launch_kernel` holds the grid, the cluster, the threads and the dynamic
  shared memory, exactly as they will be at launch;
- the resources of the kernel, with the columns of tensor memory before they are rounded up;
- the disassembly, after ptxas' report, by the nvdisasm that lies beside ptxas.
"""

import dataclasses
import re

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.sass import Loop, inner_loops

DUMPS = ("MOSAIC_GPU_DUMP_PTXAS", "MOSAIC_GPU_DUMP_HOST_LLVM", "MOSAIC_GPU_DUMP_RESOURCES", "MOSAIC_GPU_DUMP_SASS")

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_LAUNCH = re.compile(r"call i32 @mosaic_gpu_launch_kernel\(ptr %\d+, ((?:i32 \d+, )+)")
_COLUMNS = re.compile(r"Resources\(.*?tmem_scratch_cols=(\d+), tmem_collective_scratch_cols=(\d+)")
_SERIALIZED = re.compile(r"wgmma\.mma_async instructions are serialized.*")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
      architecture: what ptxas compiled it for.
      registers: per thread at launch; a kernel may later move them from one warpgroup to another.
      threads: per block.
      spill_stores: bytes per thread.
      spill_loads: bytes per thread.
      stack: bytes per thread.
      shared_memory: bytes per block, static and dynamic.
      tensor_memory_columns: as allocated.
      serialized: ptxas' warning that wgmma instructions wait for one another, "" if it gave none.
      loops: see `sass.inner_loops`; empty where the kernel is not disassembled.
    """

    architecture: str
    registers: int
    threads: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared_memory: int
    tensor_memory_columns: int
    serialized: str
    loops: tuple[Loop, ...] = ()

    def faults(self, chip: Chip) -> list[str]:
        """What is wrong with the kernel on this chip, each with its number and the limit; empty if nothing is."""
        faults = []
        if self.architecture != chip.architecture:
            faults.append(f"compiled for {self.architecture}, not {chip.architecture}")
        if self.spill_stores or self.spill_loads:
            faults.append(f"spills: {self.spill_stores} bytes of stores, {self.spill_loads} of loads")
        for value, limit, what in (
            (self.registers * self.threads, chip.registers, "registers in a block"),
            (self.shared_memory, chip.shared_memory, "bytes of shared memory"),
            (self.tensor_memory_columns, chip.tensor_memory_columns, "columns of tensor memory"),
        ):
            if value > limit:
                faults.append(f"{value} {what}, of {limit}")
        if self.serialized:
            faults.append(self.serialized)
        return faults


def allocated_columns(columns: int) -> int:
    """Columns of tensor memory that a block gets when it asks for `columns`: a power of two, at least 32."""
    return max(32, 1 << (columns - 1).bit_length()) if columns else 0


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]


def parse(output: str) -> list[Kernel]:
    """The kernels in a compiler's output, in the order in which they were compiled.

    Raises:
      ValueError: the output holds no kernel, its reports do not belong together, or its disassembly cannot be followed;
        the message says which.
    """
    starts = list(_ENTRY.finditer(output))
    if not starts:
        raise ValueError("the compiler reported no kernel")
    # Grid and cluster of three numbers each, then the threads in x, y and z, then the dynamic shared memory.
    launches = [_numbers(r"i32 (\d+)", match[1]) for match in _LAUNCH.finditer(output)]
    columns = [sum(map(int, match.groups())) for match in _COLUMNS.finditer(output)]
    if not len(starts) == len(launches) == len(columns):
        raise ValueError(
            f"{len(starts)} reports of ptxas, {len(launches)} launches and {len(columns)} lists of resources; "
            "there must be one of each for a kernel"
        )
    # Where ptxas puts the warning relative to the kernel's report is not documented, so it counts for the whole output.
    warning = _SERIALIZED.search(output)
    kernels = []
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(output)
        report = output[start.start() : end]
        registers, static = _numbers(r"Used (\d+) registers", report), _numbers(r"(\d+) bytes smem", report)
        if len(registers) != 1 or len(launches[i]) < 10:
            raise ValueError(f"cannot read the report of ptxas or the launch of kernel {i}: {report[:500]}")
        kernels.append(
            Kernel(
                architecture=start[2],
                registers=registers[0],
                threads=launches[i][6] * launches[i][7] * launches[i][8],
                # Functions that were not inlined report their own.
                spill_stores=sum(_numbers(r"(\d+) bytes spill stores", report)),
                spill_loads=sum(_numbers(r"(\d+) bytes spill loads", report)),
                stack=sum(_numbers(r"(\d+) bytes stack frame", report)),
                shared_memory=launches[i][9] + sum(static),
                tensor_memory_columns=allocated_columns(columns[i]),
                serialized=warning[0] if warning else "",
                loops=inner_loops(report),
            )
        )
    return kernels
