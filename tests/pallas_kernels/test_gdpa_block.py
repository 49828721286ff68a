"""The norms around gdpa, and which way the block takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mosaic import target
from pallas_kernels.operators.gdpa import block, block_mosaic
from pallas_kernels.operators.gdpa.norms import layer_norm, rms_norm
from tests.pallas_kernels.operators import Layout


def test_norms():
    x = jnp.asarray(5 + 3 * np.random.default_rng(0).normal(size=(4, 2, 8)), jnp.float32)
    centred = x - x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(layer_norm(x), centred / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(rms_norm(x), x / jnp.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5), atol=1e-5)
    zeros = jnp.zeros((1, 2, 8))
    for norm in (layer_norm, rms_norm):
        np.testing.assert_array_equal(norm(zeros), 0.0)
        assert np.isfinite(jax.grad(lambda v, norm=norm: norm(v).sum())(zeros)).all()
        assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    # Sums of squares of large bfloat16 numbers need float32.
    large = (1e3 * x).astype(jnp.bfloat16)
    np.testing.assert_allclose(rms_norm(large).astype(jnp.float32), rms_norm(large.astype(jnp.float32)), rtol=1e-2)


def operands(dtype=jnp.bfloat16, heads=4, dim=128, keys=256):
    layout = Layout((5, 0, 20))
    rows = jax.ShapeDtypeStruct((layout.rows, heads, dim), dtype)
    dense = jax.ShapeDtypeStruct((3, keys, heads, dim), dtype)
    return rows, dense, dense, *layout.offsets


@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_the_norms_are_fused_where_that_pays(generation):
    def refusal(*operands):
        found = []
        jax.eval_shape(lambda *operands: found.append(block_mosaic.refusal(*operands)), *operands)
        return found[0]

    with target.build_for(target.Target(generation, 132)):
        assert refusal(*operands()) is None
        assert refusal(*operands(dim=32, keys=128)) is None
        assert "do not fit into shared memory" in refusal(*operands(heads=16))
        assert "beyond 512 keys" in refusal(*operands(keys=1024))
        assert "float32" in refusal(*operands(jnp.float32))


def test_the_log_says_once_whether_they_are(caplog, monkeypatch):
    block._log_choice.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(block_mosaic, "gdpa_block", lambda q, *_, **__: q)
    with caplog.at_level("INFO", logger="pallas_kernels.operators.gdpa.block"):
        with target.build_for(target.Target("sm90", 132)):
            for _ in range(2):
                jax.eval_shape(block.gdpa_block, *operands())
        jax.eval_shape(lambda *x: block.gdpa_block(*x, implementation="xla"), *operands(keys=1024))
        with target.build_for(target.Target("sm90", 132)):
            jax.eval_shape(block.gdpa_block, *operands(keys=1024))
    assert [record.getMessage() for record in caplog.records] == [
        "gdpa_block: norms and residuals are fused into the kernel of gdpa, forward",
        "gdpa_block: norms and residuals by XLA around gdpa, since they cannot be fused: it does not pay beyond 512 "
        "keys, and there are 1024",
    ]
