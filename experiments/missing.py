"""What has a run not learned about the synthetic world? ``python -m experiments.missing --run.dir runs/small-...``

The log odds of a click are a sum of terms: effects, crosses, and what each history says. Three numbers for each term:

    worth     NE lost by a predictor that knows the whole law except this term
    lacking   NE the run would gain if it were given this term: logistic regression on its logit and the true term
    share     of the term in the run's logit: its coefficient when the logit is regressed on all terms

Terms may be correlated, as affinity and old events are; giving the run one of them then also makes up for the other.
A term with a small share and much to gain is what to work on next. Regressions are fitted on the rows that they are
judged on, two numbers on thousands of rows. NE here is LogLoss over the entropy of the split's own click rate.

Prints a table and writes missing.png into the run directory. Needs the extra "dev" (scikit-learn).
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from experiments.evaluate import newest_predictions
from kunlun_jax.data.sets.synthetic import SyntheticSource
from kunlun_jax.training.metrics import entropy, log_losses


@dataclasses.dataclass(frozen=True)
class RunArguments:
    """Which run."""

    dir: Path
    """Run directory of experiments.train on the synthetic world."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the comparison."""

    run: RunArguments
    """Which run."""
    split: str = "test"
    """Split to look at."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """One term of the law, and what a model has of it; NE and shares as in the module's docstring."""

    term: str
    spread: float  # standard deviation, in log odds
    worth: float
    lacking: float
    share: float


def normalized_entropy(labels: Float[np.ndarray, " rows"], *logits: Float[np.ndarray, " rows"]) -> float:
    """NE of the best linear combination of `logits`."""
    inputs = np.stack(logits, axis=1)
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(inputs, labels).decision_function(inputs)
    return float(log_losses(labels, fitted).mean() / entropy(float(labels.mean())))


def missing(
    logits: Float[np.ndarray, " rows"], labels: Float[np.ndarray, " rows"], terms: dict[str, np.ndarray]
) -> list[Missing]:
    """What a model with these logits lacks of each term, in the order of `terms`."""
    law = np.sum(list(terms.values()), axis=0)
    whole, own = normalized_entropy(labels, law), normalized_entropy(labels, logits)
    design = np.stack([*terms.values(), np.ones(len(labels))], axis=1)
    shares = np.linalg.lstsq(design, logits, rcond=None)[0]
    return [
        Missing(
            name,
            float(term.std()),
            normalized_entropy(labels, law - term) - whole,
            own - normalized_entropy(labels, logits, term),
            float(share),
        )
        for (name, term), share in zip(terms.items(), shares, strict=False)
    ]


def table(rows: list[Missing]) -> str:
    """The numbers for a person."""
    lines = [f"{'term':24} {'spread':>7} {'worth':>7} {'lacking':>8} {'share':>6}"]
    lines += [f"{r.term:24} {r.spread:7.2f} {r.worth:7.4f} {r.lacking:8.4f} {r.share:6.2f}" for r in rows]
    return "\n".join(lines)


def picture(rows: list[Missing], path: Path) -> None:
    """Two bars for each term: what it is worth, and what the run lacks of it."""
    figure = Figure(figsize=(7, 0.5 * len(rows) + 1.2), dpi=140, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [r.worth for r in rows], height=0.38, color="#b8c4cc", label="worth to the law")
    axes.barh(places + 0.2, [r.lacking for r in rows], height=0.38, color="#c8553d", label="lacking in the run")
    axes.set_yticks(places, [r.term for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("NE")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, predicts, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.missing", description=__doc__)
    try:
        run, step, predictions = newest_predictions(args.run.dir, None, args.split, args.progress)
        source = run.dataset.source
        if not isinstance(source, SyntheticSource):
            raise ValueError(
                f"{args.run.dir} is a run on {run.dataset.schema.name!r}; click probabilities are known "
                "only for the synthetic world"
            )
    except (ValueError, KeyError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    labels, logits = (array[:, 0].astype(np.float64) for array in (predictions.labels, predictions.logits))
    rows = missing(logits, labels, source.click_terms(predictions.row))
    print(f"{args.run.dir}, step {step}, {len(labels):,} rows of {args.split}")
    print(table(rows))
    picture(rows, args.run.dir / "missing.png")
    print(f"picture in {args.run.dir / 'missing.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
