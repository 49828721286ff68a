"""The JAX model against its PyTorch twin, part by part: outputs, and gradients of every parameter and table.

A difference is relative: the largest absolute one of an array over the largest entry of the array. Some gradients are
zero up to rounding, such as that of the key bias in a softmax over all keys, so a gradient is never divided by less
than `GRADIENT_FLOOR` of the largest entry among all gradients.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models import kunlun
from kunlun_jax.models.base import Model, ModelConfig
from kunlun_jax.models.system import System as JaxSystem
from kunlun_jax.nn.embedding import Embedded, lookup
from kunlun_jax.torch_reference import weights
from kunlun_jax.torch_reference.batch import from_packed, pad
from kunlun_jax.torch_reference.model import Kunlun
from kunlun_jax.torch_reference.registry import make_twin
from kunlun_jax.torch_reference.system import EVENT, System, weighted_loss
from kunlun_jax.training import step

GRADIENT_FLOOR = 1e-6
KINDS = (
    "tables",
    "context",
    "event_input",
    "weight_generation",
    "pool",
    "to_context",
    "interaction",
    "ffn",
    "attention",
    "head",
)
"""Kinds of parts of a model, in the order in which they run."""


def cast(tree: Any, dtype: np.dtype | type) -> Any:
    """The tree with floating leaves cast to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model twice, with the same parameters.

    Attributes:
      graph, rest: the JAX model without its parameters, as `nnx.split` gives them.
      params: its dense parameters.
      tables: table name -> ``[rows, dim]``.
      twin: the PyTorch model, in the same dtype.
    """

    graph: Any
    rest: Any
    params: Any
    tables: Mapping[str, jax.Array]
    twin: System

    @staticmethod
    def of(
        model: Model,
        tables: Mapping[str, jax.Array],
        schema: Schema,
        config: ModelConfig,
        dense_moments: Moments | None = None,
    ) -> "Pair":
        """The model, and a twin with its parameters.

        If ``config.dtype`` is "float64", parameters and tables are cast to it.
        """
        dtype = np.dtype(config.compute_dtype)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        params, tables = cast(params, dtype), cast(dict(tables), dtype)
        twin = make_twin(schema, config, dense_moments=dense_moments).to(torch_dtype(dtype))
        weights.into_torch(weights.from_nnx(params, tables), twin)
        return Pair(graph, rest, params, tables, twin)

    @property
    def dtype(self) -> np.dtype:
        """Of the parameters."""
        return next(iter(jax.tree.leaves(self.params))).dtype

    def model(self, params: Any) -> JaxSystem:
        """The JAX model with these parameters."""
        return nnx.merge(self.graph, params, self.rest)


def torch_dtype(dtype: np.dtype | type) -> torch.dtype:
    """PyTorch's float32 or float64."""
    return {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}[np.dtype(dtype)]


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """The context in which a comparison in "float32" or "float64" must run."""
    if dtype == "float64":
        # Flax's norms promote float64 with float32, which strict promotion refuses.
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            yield
    else:
        yield


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Relative differences.

    Attributes:
      outputs: name of a part's PyTorch module -> difference of its output.
      gradients: PyTorch's name of a parameter -> difference of the gradient of the loss.
    """

    outputs: dict[str, float]
    gradients: dict[str, float]

    def by_kind(self) -> dict[str, tuple[float | None, float | None]]:
        """Kind of part -> the largest difference of outputs and of gradients over layers and event types."""

        def largest(of: Mapping[str, float], kind: str) -> float | None:
            found = [value for name, value in of.items() if kind_of(name) == kind]
            return max(found) if found else None

        others = {kind_of(name) for name in (*self.outputs, *self.gradients)} - set(KINDS)
        kinds = (*KINDS, *sorted(others))
        rows = {kind: (largest(self.outputs, kind), largest(self.gradients, kind)) for kind in kinds}
        return {kind: row for kind, row in rows.items() if row != (None, None)}


def kind_of(name: str) -> str:
    """The kind of part that a PyTorch name belongs to: its first word or, in a layer, the one after the number."""
    words = name.split(".")
    return words[2] if words[0] == "layers" else words[0]


def compare(pair: Pair, batch: Batch, compiler_options: Mapping[str, Any] | None = None) -> Comparison:
    """Runs both models and the gradients of their losses on `batch`, cast to the dtype of the pair."""
    batch = cast(jax.tree.map(jnp.asarray, batch), pair.dtype)

    def loss(params, tables, batch):
        model = pair.model(params)
        outputs = jax_outputs(model, batch, lookup(model.schema, batch, tables))
        return step.weighted_loss(outputs["head"], batch), outputs

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=dict(compiler_options or {}))
    gradients, outputs = run(pair.params, pair.tables, batch)
    ours = {name: pad(x, x.values) if isinstance(x, Jagged) else np.asarray(x) for name, x in outputs.items()}
    theirs, their_gradients = torch_outputs(pair.twin, batch)
    return Comparison(
        {name: relative_difference(ours[name], theirs[name]) for name in ours},
        _gradient_differences(weights.from_nnx(*gradients), their_gradients),
    )


def jax_outputs(model: JaxSystem, batch: Batch, embedded: Embedded) -> dict[str, Any]:
    """The output of every part, by the name of its PyTorch module; events are `Jagged`.

    In Kunlun every block is a part; in other systems the input and the head are.
    """
    if not isinstance(model, kunlun.Kunlun):
        x, events, _ = model.inputs(batch, embedded)
        return {
            "context": x,
            **{f"event_input.{EVENT}{name}": s for name, s in events.items()},
            "head": model(batch, embedded),
        }
    states = list(model.states(batch, embedded))
    outputs: dict[str, Any] = {"context": states[0][0]}
    outputs |= {f"event_input.{EVENT}{name}": events for name, events in states[0][1].items()}
    for index, (layer, (x, events, _), after) in enumerate(zip(model.layers, states[:-1], states[1:], strict=True)):
        prefix = f"layers.{index}"
        x_sum = None
        if layer.weight_generation is not None:
            x_sum = outputs[f"{prefix}.weight_generation"] = layer.weight_generation(x)
        personalized, pooled = layer.personalized(events, x_sum)
        outputs |= {f"{prefix}.ffn.{EVENT}{name}": personalized[name] for name in layer.ffn}
        for name, pool in layer.pool.items():
            outputs[f"{prefix}.pool.{EVENT}{name}"] = pool(pooled[name])
            outputs[f"{prefix}.to_context.{EVENT}{name}"] = after[2][name]
        outputs |= {f"{prefix}.attention.{EVENT}{name}": after[1][name] for name in layer.attention}
        outputs[f"{prefix}.interaction"] = after[0]
    outputs["head"] = model(batch, embedded)
    return outputs


def torch_outputs(model: System, batch: Batch) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The output of every part by the name of its module, padding zero; and the gradient of every parameter."""
    padded = from_packed(batch, dtype=next(model.parameters()).dtype)
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module, inputs, output):
            if kind_of(name) in ("event_input", "ffn", "attention"):
                output = output * padded.events[name.rpartition(EVENT)[2]].mask[..., None]
            outputs[name] = output.detach().numpy()

        return hook

    blocks = isinstance(model, Kunlun)
    parts = [(name, module) for name, module in model.named_modules() if _is_part(name, blocks)]
    hooks = [module.register_forward_hook(keep(name)) for name, module in parts]
    try:
        model.zero_grad()
        logits = model(padded)
        outputs["head"] = logits.detach().numpy()  # with the linear map of the context, where there is one
        weighted_loss(logits, padded).backward()
    finally:
        for hook in hooks:
            hook.remove()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    still = sorted(name for name, gradient in gradients.items() if gradient is None)
    if still:
        raise ValueError(f"nothing reads the parameters {still}")
    return outputs, {name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None}


def relative_difference(a: Any, b: Any, floor: float = 0.0) -> float:
    """Max |a - b| / max(max |b|, floor); infinite if either is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    difference = float(np.abs(a - b).max(initial=0))
    if not np.isfinite(difference):
        return float("inf")
    return difference / max(float(np.abs(b).max(initial=0)), floor) if difference else 0.0


def _gradient_differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    floor = GRADIENT_FLOOR * max(float(np.abs(x).max(initial=0)) for x in theirs.values())
    return {name: relative_difference(ours[name], theirs[name], floor) for name in sorted(ours.keys() | theirs.keys())}


def _is_part(name: str, blocks: bool) -> bool:
    """Whether a PyTorch module is a part that `jax_outputs` names, not a piece of one; `blocks` of layers are, too."""
    words = name.split(".")
    if words[0] == "layers" and not blocks:
        return False
    if words[0] == "layers":
        return len(words) == (3 if words[-1] in ("weight_generation", "interaction") else 4) and kind_of(name) in KINDS
    return len(words) == (2 if words[0] == "event_input" else 1) and words[0] in KINDS
