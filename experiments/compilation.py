"""Keeps what XLA compiled, so that a second run of the same model starts in seconds."""

from pathlib import Path

import jax

from kunlun_jax.data.cache import default_cache


def keep_compiled(cache: Path | None) -> None:
    """Has programs that took over a second to compile kept in ``xla`` of a folder, `default_cache` if it is None.

    It does nothing where JAX has a folder for them already, by ``JAX_COMPILATION_CACHE_DIR`` or jax.config;
    ``JAX_ENABLE_COMPILATION_CACHE=0`` has nothing kept. What is found there is the program that would be compiled: the
    name of an entry is a digest of the program, the options, the versions and the processor.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((cache or default_cache()) / "xla"))
