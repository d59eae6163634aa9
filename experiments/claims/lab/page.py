"""The page of a run, `page.html` filled in: one file that needs nothing else."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from experiments.claims.lab.experiment import Experiment

_WORDS = {
    "supported": "The claim holds here: the whole interval is above the smallest "
    "effect that supports it.",
    "contradicted": "The claim does not hold here: the whole interval is below the "
    "smallest effect that supports it.",
    "inconclusive": "Not decided: the interval covers the smallest effect that "
    "supports the claim, or is not clear of it once all claims are counted.",
    "not run": "Not measured in this run.",
}


def page(
    experiments: Sequence[Experiment],
    figures: dict[str, str],
    loaded: dict[str, Any],
) -> str:
    """Returns the page.

    Args:
        experiments: of the run, in order.
        figures: "forest" and the names of experiments to inline SVG.
        loaded: file names to what they hold.
    """
    verdicts = loaded["verdicts.json"]["verdicts"]
    found = Counter(row["verdict"] for row in verdicts)
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader(__package__ or "", ""),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html").render(
        experiments=experiments,
        figures=figures,
        verdicts=verdicts,
        effects=loaded["effects.json"]["effects"],
        config=loaded["config.json"],
        environment=loaded["environment.json"],
        git=loaded["environment.json"]["git"],
        timings=loaded["timings.json"],
        counts=[f"{found[word]} {word}" for word in _WORDS if word in found],
        words=_WORDS,
    )


def number(row: dict) -> str:
    """Returns an effect with its interval, such as "1.5 [1.2, 1.8]"."""
    if row["mean"] is None:
        return "—"
    ends = ("∞" if row[key] is None else f"{row[key]:.3g}" for key in ("low", "high"))
    return f"{row['mean']:.3g} [{', '.join(ends)}]"
