"""HSTU: one causal sequence with the candidate last at the FLOPs and on the data of kunlun/small.

    python -m experiments.train hstu/small

Cost: seven minutes on a CPU core that others use too. Score: test NE .8825, one seed, where the least there can be is
.681 and Kunlun's is .810 (commit 9ff5ada, `experiments/results/cpu/systems.json`). It learns little from histories
here; LOG.md says why ("What did not work").
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=HSTUConfig(
        dim=48,
        layers=2,
        embedding_dim=48,
        heads=2,
        sequence_scale=100.0,
        candidate_hidden=(128,),
        head_hidden=(64,),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
