"""Where compiled programs are kept."""

import jax
import pytest

from experiments.compilation import keep_compiled


@pytest.fixture
def folder():
    """Reads the folder that JAX has, and gives back that of before."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_beside_the_data(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "named"))
    for cache, expected in ((None, tmp_path / "named"), (tmp_path / "given", tmp_path / "given")):
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled(cache)
        assert folder() == str(expected / "xla")


def test_a_folder_that_jax_has_stays(folder, tmp_path):
    before = folder()
    assert before is not None
    keep_compiled(tmp_path)
    assert folder() == before
