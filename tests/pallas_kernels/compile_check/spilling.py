"""A kernel whose threads hold more numbers than they have registers; for the compile check, which must fail it."""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

SHAPE = (192, 256)
"""Of float32: 384 of each of 128 threads, and a thread has at most 255 registers."""


def build(case, chip):
    def kernel(x, out, smem, barrier):
        plgpu.copy_gmem_to_smem(x, smem, barrier)
        plgpu.barrier_wait(barrier)
        values = smem[...]
        # Everything is read before anything is written, so all of it is held at once.
        plgpu.commit_smem()
        smem[...] = values * 2
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem, out)
        plgpu.wait_smem_to_gmem(0)

    struct = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    function = plgpu.kernel(
        kernel, out_type=struct, scratch_types={"smem": plgpu.SMEM(SHAPE, jnp.float32), "barrier": plgpu.Barrier()}
    )
    return function, (struct,)
