"""Trains a model: ``python -m experiments.train MODEL/PRESET [--data.root FOLDER] [flags]``.

    python -m experiments.train kunlun/small                                    2-3 minutes on two CPU cores
    python -m experiments.train kunlun/kuairand --data.root KuaiRand-Pure       results in LOG.md
    python -m experiments.train my/preset.py                                    one of your own

Presets are the files of ``experiments/configs``; each says in its docstring what it costs and what score to expect.
``python -m experiments.train kunlun/small --help`` lists every flag of that model and its data set with unit and
default. Without --data.root presets train on the synthetic world, if they are not made for another data set.

The run directory (runs/MODEL-PRESET-DATASET-seedSEED unless --run.dir names one) holds config.json, env.json,
metrics.jsonl, checkpoints/, result.json and learning_curve.png. A run that was cut off goes on with the same command.
What XLA compiled for it is kept beside the prepared data (`experiments.compilation`).

With ``--mesh.data N`` many devices share a run. If they are in several processes, the command is started once in each
(docs/cluster.md); the first of them prints and writes.
"""

import contextlib
import dataclasses
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.compilation import keep_compiled
from experiments.configs import PRESETS
from experiments.files import load
from kunlun_jax.data.open import DataConfig, open_dataset, resolve
from kunlun_jax.flops import summary
from kunlun_jax.processes import is_first, join
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.loop import train_run
from kunlun_jax.training.metrics import ne_names
from kunlun_jax.training.run import prepare

SHOWN = {"auc": "AUC", "gauc": "gAUC", "logloss": "LogLoss", "calibration": "calibration"}
"""Metrics beside NE at the end of a run, and how they are written."""


def run_path(preset: str, config: TrainConfig, dataset_name: str) -> Path:
    """The run directory: --run.dir, or a name made of preset, data set and seed."""
    return config.run.dir or Path("runs") / f"{preset.replace('/', '-')}-{dataset_name}-seed{config.run.seed}"


def report(result: dict[str, Any], path: Path) -> str:
    """The end of a run, for a person."""
    lines = []
    for split, values in result["splits"].items():
        for name in sorted(ne_names(values)):
            task, prefix = name.rpartition("/")[0], name.removesuffix("ne")
            floor = f" (floor of the data {values['floor']:.4f})" if "floor" in values and task in ("", "click") else ""
            ne = values[name]
            numbers = ["NE undefined" if ne is None else f"NE {ne:.4f}{floor}"]
            for metric, label in SHOWN.items():
                value = values.get(prefix + metric)
                numbers.append(f"{label} {value:.4f}" if value is not None else f"{label} undefined")
            lines.append(f"{split:>12} {task}: " + ", ".join(numbers))
    lines += [
        f"{result['steps']:,} steps at {result['examples_per_second']:,.0f} examples/s (median)",
        f"{result['parameters']:,} parameters, {result['flops_per_example']:,.0f} forward FLOPs per example "
        f"({result['training_flops_per_example']:,.0f} in training{executed_text(result)})",
        mfu_text(result),
        f"run directory   {path}",
        f"learning curve  {path / 'learning_curve.png'}",
    ]
    return "\n".join(lines)


def executed_text(result: dict[str, Any]) -> str:
    """What a training step executes beside what of it is useful, and moves; of a fused kernel that is not known."""
    executed = result["executed_flops_per_example"]
    if executed is None:
        return ""
    moved = result["moved_bytes_per_step"]
    bytes_text = "" if moved is None else f"; a step moves {moved / 1e9:.3g} GB"  # an older run did not count them
    return f", {result['training_flops_per_example'] / executed:.0%} of the {executed:,.0f} executed{bytes_text}"


def mfu_text(result: dict[str, Any]) -> str:
    """MFU with what it is a share of."""
    limit, (first, last), commit = (result["mfu_of"][name] for name in ("peak", "steps", "commit"))
    peak = f"{limit['flops_per_second'] / 1e12:.3g} TFLOP/s {limit['dtype']} ({limit['source']})"
    where = f"{limit['devices']} x {limit['device']}, steps {first} to {last}, commit {commit}"
    return f"MFU {result['mfu']:.1%} of {peak} on {where}"


def parse(arguments: list[str]) -> tuple[str, TrainConfig]:
    """Name of the preset and the config that flags make of it; the first argument may be the path of a preset.

    Raises:
      ValueError: the file is no preset, or flags of a data set stand beside a folder that holds another.
      SystemExit: --help, or flags that mean nothing.
    """
    presets = PRESETS
    if arguments and arguments[0].endswith(".py"):
        name, summary, config = load(Path(arguments[0]), "CONFIG", TrainConfig)
        presets, arguments = {**PRESETS, name: (summary, config)}, [name, *arguments[1:]]
    with _plain_names():
        config = tyro.extras.overridable_config_cli(
            presets, args=arguments, prog="experiments.train", description=__doc__
        )
    name = next(argument for argument in arguments if argument in presets)
    refuse_unread(config.data, presets[name][1].data)
    return name, config


@contextlib.contextmanager
def _plain_names() -> Iterator[None]:
    """Takes tyro's name for what a preset's flags are fields of out of what it says of them."""
    inner, said = "__tyro-dummy-inner__.", io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        for line in said.getvalue().splitlines(keepends=True):
            plain = line.replace(inner, "")
            # The frame around the text stays where it was.
            sys.stderr.write(line if plain == line else re.sub(r"(│?\n?)$", " " * len(inner) + r"\1", plain, count=1))


def refuse_unread(data: DataConfig, preset: DataConfig) -> None:
    """ValueError if options of a data set without files were given, and a folder that is read in its place."""
    if data.root is None or data.options.signs:
        return
    given, usual = dataclasses.asdict(data.options), dataclasses.asdict(preset.options)
    changed = ", ".join(f"data.{name} is {value!r}" for name, value in given.items() if value != usual[name])
    if changed:
        raise ValueError(
            f"{changed}, an option of {type(data.options).__name__}, which is not read: data.root is "
            f"{str(data.root)!r}. Leave out one of the two, or use a preset made for the data in that folder"
        )


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, trains, prints the result; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("pallas_kernels").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        name, config = parse(arguments)
        if join(config.mesh):
            # Before anything can go wrong in one of them alone.
            print(
                f"process {jax.process_index()} of {jax.process_count()}; when one is lost, the others end within "
                f"{config.mesh.heartbeat_s} s, and the same command in all goes on at the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        keep_compiled(config.data.cache)
        config = dataclasses.replace(config, data=resolve(config.data))
        dataset = open_dataset(config.data)
        path = run_path(name, config, dataset.schema.name)
        run = prepare(config, dataset)
        if is_first():
            print(summary(run.parts), flush=True)
        result = train_run(run, path)
    except (ValueError, KeyError, OSError) as error:
        # A KeyError as text stands in quotes.
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    if "stopped" in result:
        done = f"{result['stopped']} of {result['steps']} steps"
        print(f"{result['signal']}: saved after {done}; the same command goes on there")
        return 0
    if is_first():
        print(report(result, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
