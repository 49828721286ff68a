"""Compiles one Triton kernel for a chip that need not be there, in the process that the check starts.

jax-triton lowers the call as it would on a GPU, to PTX; then the ptxas that JAX runs on a GPU assembles it and reports.
It reads a pickled `pallas_kernels.compile_check.triton_catalogue.Case` and takes the path of ptxas as its argument.
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
    """Prints ptxas' report and a line of threads and dynamic shared memory for each kernel of the case."""
    case, ptxas = pickle.load(sys.stdin.buffer), sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        # jax-triton reads it when it is imported.
        os.environ[DUMPS] = folder
        import jax

        function, arguments = case.build()
        jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
        for path in sorted(Path(folder).glob("*/*.ptx")):
            architecture = re.search(r"^\.target (\w+)", path.read_text(), re.MULTILINE)
            assert architecture is not None
            command = [ptxas, "-v", f"--gpu-name={architecture[1]}", str(path), "-o", os.devnull]
            report = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            threads = re.search(r"\.reqntid (\d+)", path.read_text())
            shared = re.search(r"shared_mem_bytes: (\d+)", path.with_suffix(".compile_info").read_text())
            assert threads is not None and shared is not None
            print(report.stdout)
            print(f"Launch: {threads[1]} threads, {shared[1]} bytes of dynamic shared memory")


if __name__ == "__main__":
    main()
