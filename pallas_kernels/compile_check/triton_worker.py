"""Compiles one Triton kernel for a chip that need not be there, in the process that the check starts.

jax-triton lowers the call as it would on a GPU, to PTX; then the ptxas that JAX runs on a GPU assembles it and reports,
and the nvdisasm that lies beside it disassembles the result. It reads a pickled
`pallas_kernels.compile_check.triton_catalogue.Case` and takes the path of ptxas as its argument.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DUMPS = "JAX_TRITON_DUMP_DIR"


def main() -> None:
    """Prints ptxas' report, the disassembly and a line of threads and shared memory for each kernel of the case."""
    case, ptxas = pickle.load(sys.stdin.buffer), Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        # jax-triton reads it when it is imported.
        os.environ[DUMPS] = folder
        import jax

        function, arguments = case.build()
        jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
        for path in sorted(Path(folder).glob("*/*.ptx")):
            architecture = re.search(r"^\.target (\w+)", path.read_text(), re.MULTILINE)
            assert architecture is not None
            assembled = path.with_suffix(".cubin")
            printed = [
                subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
                for command in (
                    [ptxas, "-v", f"--gpu-name={architecture[1]}", path, "-o", assembled],
                    [ptxas.with_name("nvdisasm"), assembled],
                )
            ]
            threads = re.search(r"\.reqntid (\d+)", path.read_text())
            shared = re.search(r"shared_mem_bytes: (\d+)", path.with_suffix(".compile_info").read_text())
            assert threads is not None and shared is not None
            print(*printed, sep="\n")
            print(f"Launch: {threads[1]} threads, {shared[1]} bytes of dynamic shared memory")


if __name__ == "__main__":
    main()
