"""What every test runs under: eight CPU devices, strict promotion of dtypes and ranks, no display."""

import ctypes
import gc
import os
from pathlib import Path

from tests import compiled

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# What XLA compiled once is kept for other modules (`_memory_goes_back`), workers, subprocesses, the next run and other
# clones. Here, since jax reads it when it is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.folder()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

from tests.slowness import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # once, not in each process of xdist
        compiled.remove_old(compiled.folder())


def pytest_collection_finish() -> None:
    """What the imports made stays to the end, so the collector need not go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _memory_goes_back():
    """What a module compiled is of little use to the next, and after a thousand tests fills ten gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the public data sets: the environment variable KUNLUN_DATA, else ../shared/data beside the clone."""
    named = os.environ.get("KUNLUN_DATA")
    if named is not None:
        path = Path(named)
        if not path.is_dir():
            raise FileNotFoundError(
                f"KUNLUN_DATA is {named!r}, which is no folder; unset it to skip tests on real data"
            )
        return path
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no public data: KUNLUN_DATA is not set and {path} is no folder")
    return path
