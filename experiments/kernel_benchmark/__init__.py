"""The parts of ``python -m experiments.kernels``: cases, implementations, peers, clock, results, tuning."""
