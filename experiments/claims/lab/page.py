"""The page of a run, `page.html` filled in, and its summary as Markdown."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from experiments.claims.lab.experiment import Experiment
from experiments.claims.lab.rules import Quote, claims
from experiments.claims.lab.words import least_in_words
from experiments.common.tables import markdown

WORDS = {
    "supported": "The claim holds here: the whole interval is above the smallest "
    "effect that matters.",
    "reversed": "The opposite holds here: the whole interval is beyond the smallest "
    "effect that matters, on the other side.",
    "negligible": "There is no effect that matters: the whole interval is inside the "
    "smallest one, on both sides.",
    "undecided": "Not decided: with these starts none of the three can be told.",
    "exact": "An identity or a definition: it holds in every start.",
    "wrong": "It is not what happens, in no start: no statistics are needed.",
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
        figures: "forest" and the names of experiments, alone and with " starts", to
            inline SVG.
        loaded: file names to what they hold.
    """
    verdicts = loaded["verdicts.json"]["verdicts"]
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader(__package__ or "", ""),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["needed"] = lambda name: least_in_words(claims().rules[name])
    return environment.get_template("page.html").render(
        experiments=experiments,
        figures=figures,
        verdicts=verdicts,
        head=loaded["verdicts.json"],
        effects=loaded["effects.json"]["effects"],
        config=loaded["config.json"],
        environment=loaded["environment.json"],
        git=loaded["environment.json"]["git"],
        timings=loaded["timings.json"],
        counts=counts(verdicts),
        claims=claims(),
        said=said(verdicts),
        words=WORDS,
    )


def counts(verdicts: Sequence[dict]) -> str:
    """Returns how many claims have which outcome, in words."""
    found = Counter(row["verdict"] for row in verdicts)
    return ", ".join(f"{found[word]} {word}" for word in WORDS if found[word])


def said(verdicts: Sequence[dict]) -> dict[str, list[tuple[Quote, dict]]]:
    """Returns what each source says, with the verdicts."""
    known = claims()
    found: dict[str, list[tuple[Quote, dict]]] = {name: [] for name in known.sources}
    for row in verdicts:
        rule = known.rules.get(row["name"])
        for quote in rule.quotes if rule else ():
            found[quote.source].append((quote, row))
    return {known.sources[key]: quotes for key, quotes in found.items() if quotes}


def table(verdicts: Sequence[dict], beside: dict[str, Any] | None = None) -> str:
    """Returns the claims as a table in Markdown.

    Args:
        verdicts: of the run.
        beside: `verdicts.json` of a run with other starts, whose outcomes get a column.
    """
    header = ["claim", "measured", "effect [95 %]", "repeats", "published", "`run`"]
    others = None
    if beside is not None:
        header.insert(3, f"seed {beside['seed']}")
        others = _outcomes(beside["verdicts"])
    rows = []
    for row in verdicts:
        word, again = row["verdict"], row["repeats"]
        if row["needed"]:
            word += f" (about {row['needed']} starts would decide)"
        cells = [f"{row['claim']} {row['text']}", word, row["in_words"]]
        cells += [] if others is None else [others.get(row["claim"], "—")]
        cells += ["—" if again is None else f"{100 * again:.0f} %", row["published"]]
        rows.append([*cells, f"`{row['experiment']}`"])
    return markdown(header, rows)


def agreement(verdicts: Sequence[dict], beside: Sequence[dict]) -> str:
    """Returns how many decided claims have the same outcome in a run of other starts.

    Identities and wrong wordings are not counted: no start can change them.
    """
    decided = {"supported", "reversed", "negligible"}
    mine, others = _outcomes(verdicts), _outcomes(beside)
    same = [others.get(c) == word for c, word in mine.items() if word in decided]
    return f"{sum(same)} of {len(same)} decided claims have the same outcome"


def _outcomes(verdicts: Sequence[dict]) -> dict[str, str]:
    return {row["claim"]: row["verdict"] for row in verdicts}


def summary(loaded: dict[str, Any]) -> str:
    """Returns the README of a directory with results."""
    head, environment = loaded["verdicts.json"], loaded["environment.json"]
    git = environment["git"] or {"commit": "unknown"}
    packages = environment["packages"]
    return f"""# What introductions to batch normalization claim, measured

{counts(head["verdicts"])}. Preset {head["preset"]}, seed {head["seed"]}.

![Every claim as a distance from zero](figures/forest.png)

{table(head["verdicts"])}

"Repeats" is how often other starts, drawn again from these, give the same outcome.
Intervals are of 95 % and not corrected; verdicts are: for {head["family"]} claims
(Holm) and three looks. Rules: `experiments/claims/claims.toml`, SHA-256 of all that
decides `{head["rules"]}`.

Made by commit {git["commit"]} with Python {environment["python"]}, jax
{packages["jax"]}, on {environment["processor"]}, {environment["cpu_count"]} cores.
Checked by `python -m experiments verify DIR`; `python -m experiments report DIR` makes
the page with quotes, methods and figures. Verdicts should be the same elsewhere; bits
are the same on the same machine and commit only.
"""
