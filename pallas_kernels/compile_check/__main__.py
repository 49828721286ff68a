"""The command line of `pallas_kernels.compile_check.check`."""

import sys

from pallas_kernels.compile_check.check import main

if __name__ == "__main__":
    sys.exit(main())
