"""Compiles every kernel for chips that are not there: ``python -m pallas_kernels.compile_check``, or `make kernels`."""
