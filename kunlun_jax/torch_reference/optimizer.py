"""The optimizers of the training step: AdamW for dense parameters, row-wise Adagrad for tables.

    rows:  a += mean(g^2);  row -= rate * g / (sqrt(a) + epsilon)            one accumulator per row
    rate of AdamW:  linear from 0 over the warm-up, then constant, linear to 0, or a half cosine to 0

PyTorch's AdamW is optax's: decay decoupled and scaled by the rate, epsilon 1e-8 outside the root. Source: Wukong (P)
for the pair of optimizers; rates O.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kunlun_jax.torch_reference.batch import PaddedBatch
from kunlun_jax.torch_reference.system import System, weighted_loss
from kunlun_jax.training.optimizer import OptimizerConfig


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator for each row of a ``[rows, dim]`` parameter; rows without gradient do not change."""

    def __init__(self, params, *, lr: float, initial: float, epsilon: float):
        super().__init__(params, {"lr": lr, "initial": initial, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter."""
        assert closure is None, "row-wise Adagrad takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                assert p.grad is not None, "every table is read by every batch"
                if not self.state[p]:
                    self.state[p]["accumulator"] = torch.full_like(p[:, 0], group["initial"])
                accumulator = self.state[p]["accumulator"].add_(p.grad.square().mean(-1))
                p -= group["lr"] * p.grad / (accumulator.sqrt() + group["epsilon"])[:, None]


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """AdamW's rate in step `step`, counted from 0, of a run of `steps`."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    factor = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.decay]
    return config.learning_rate * factor


class Trainer:
    """A model, its optimizers and the number of steps done.

    Args:
      model: changed in place; dropout acts if it is in training mode.
      config: rates and schedule.
      steps: length of the whole run, which the schedule needs.
    """

    def __init__(self, model: System, config: OptimizerConfig, *, steps: int):
        tables = list(model.tables.parameters())
        self.dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
        self.adamw = torch.optim.AdamW(
            self.dense, betas=(config.b1, config.b2), weight_decay=config.weight_decay, fused=True
        )
        self.adagrad = RowWiseAdagrad(
            tables, lr=config.table_learning_rate, initial=config.table_initial, epsilon=config.table_epsilon
        )
        self.model, self.config, self.steps, self.done = model, config, steps, 0
        self.forward: Callable[[PaddedBatch], Tensor] = model

    def step(self, batch: PaddedBatch) -> Tensor:
        """Loss of the batch before the update."""
        self.adamw.zero_grad()
        self.adagrad.zero_grad()
        loss = weighted_loss(self.forward(batch), batch)
        loss.backward()
        if self.config.clip_norm:
            clip_by_global_norm(self.dense, self.config.clip_norm)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(self.config, self.steps, self.done)
        self.adamw.step()
        self.adagrad.step()
        self.done += 1
        return loss.detach()


@torch.no_grad()
def clip_by_global_norm(params: list[torch.nn.Parameter], largest: float) -> None:
    """Scales all gradients so that their global norm is at most `largest`.

    torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm, so it does not give exactly that.
    """
    gradients = [p.grad for p in params if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
