"""Trains Kunlun or another system: ``python -m experiments.train PRESET [--data.root FOLDER] [flags]``.

Presets (``experiments/configs``): small, base, large, kuairand are Kunlun; wukong, interformer, hstu, dlrm, dcnv2 and
din are the systems it is measured against, at the FLOPs of small. ``python -m experiments.train small --help`` lists
every flag with its unit and default. Without --data.root it trains on the synthetic world.

    python -m experiments.train small                                    2-3 minutes on two CPU cores
    python -m experiments.train kuairand --data.root KuaiRand-Pure       results in LOG.md

The run directory (runs/PRESET-DATASET-seedSEED unless --run.dir names one) holds config.json, env.json, metrics.jsonl,
checkpoints/, result.json and learning_curve.png. A run that was cut off goes on with the same command.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.configs import PRESETS
from kunlun_jax.config import TrainConfig
from kunlun_jax.data.open import open_dataset
from kunlun_jax.flops import summary
from kunlun_jax.training.loop import prepare, train_run

SHOWN = {"auc": "AUC", "gauc": "gAUC", "logloss": "LogLoss", "calibration": "calibration"}
"""Metrics beside NE at the end of a run, and how they are written."""


def run_path(preset: str, config: TrainConfig, dataset_name: str) -> Path:
    """The run directory: --run.dir, or a name made of preset, data set and seed."""
    return config.run.dir or Path("runs") / f"{preset}-{dataset_name}-seed{config.run.seed}"


def report(result: dict[str, Any], path: Path) -> str:
    """The end of a run, for a person."""
    lines = []
    for split, values in result["splits"].items():
        for task in sorted({name.rpartition("/")[0] for name in values if name.endswith("ne")}):
            prefix = f"{task}/" if task else ""
            floor = f" (floor of the data {values['floor']:.4f})" if "floor" in values and task in ("", "click") else ""
            numbers = [f"NE {values[prefix + 'ne']:.4f}{floor}"]
            for name, label in SHOWN.items():
                value = values.get(prefix + name)
                numbers.append(f"{label} {value:.4f}" if value is not None else f"{label} undefined")
            lines.append(f"{split:>12} {task}: " + ", ".join(numbers))
    lines += [
        f"{result['steps']:,} steps at {result['examples_per_second']:,.0f} examples/s (median)",
        f"{result['parameters']:,} parameters, {result['flops_per_example']:,.0f} forward FLOPs per example "
        f"({result['training_flops_per_example']:,.0f} in training)",
        mfu_text(result),
        f"run directory   {path}",
        f"learning curve  {path / 'learning_curve.png'}",
    ]
    return "\n".join(lines)


def mfu_text(result: dict[str, Any]) -> str:
    """MFU with what it is a share of."""
    limit, (first, last) = result["mfu_of"]["peak"], result["mfu_of"]["steps"]
    peak = f"{limit['flops_per_second'] / 1e12:.3g} TFLOP/s {limit['dtype']} ({limit['source']})"
    return f"MFU {result['mfu']:.1%} of {peak} on {limit['devices']} x {limit['device']}, steps {first} to {last}"


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, trains, prints the result; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("pallas_kernels").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.extras.overridable_config_cli(PRESETS, args=arguments, prog="experiments.train", description=__doc__)
    preset = next(argument for argument in arguments if argument in PRESETS)
    try:
        dataset = open_dataset(config.data)
        path = run_path(preset, config, dataset.schema.name)
        run = prepare(config, dataset)
        print(summary(run.parts), flush=True)
        result = train_run(run, path)
    except (ValueError, KeyError) as error:
        # A KeyError as text stands in quotes.
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    if "stopped" in result:
        done = f"{result['stopped']} of {result['steps']} steps"
        print(f"{result['signal']}: saved after {done}; the same command goes on there")
        return 0
    print(report(result, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
