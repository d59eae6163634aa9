"""The page of a run: one HTML file that needs nothing else."""

import html
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.experiment import Experiment

_CSS = Path(__file__).with_name("page.css")
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
    effects = loaded["effects.json"]["effects"]
    sections = [_section(one, figures.get(one.name), effects) for one in experiments]
    body = [
        "<h1>What introductions to batch normalization claim, measured</h1>",
        f"<p class=soft>{_made_with(loaded)}</p>",
        _figure(figures["forest"], _forest_alt(verdicts)),
        "<p class=soft>Each row is the mean over the starts with its 95 % interval, as "
        "a distance from the smallest effect that would support the claim, in the "
        "units its rule names. At the right: what published work says (+ supported, "
        "− contradicted, ± qualified). Rules are part of the code. "
        "Some were changed while developing with runs of seed 0, so a run with another "
        "seed is the fairer test of them.</p>",
        _verdict_table(verdicts),
        *sections,
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>Claims about batch normalization, measured</title>",
            f"<style>{_CSS.read_text()}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def number(row: dict) -> str:
    """Returns an effect with its interval, such as "1.5 [1.2, 1.8]"."""
    if row["mean"] is None:
        return "—"
    ends = ("∞" if row[key] is None else f"{row[key]:.3g}" for key in ("low", "high"))
    return f"{row['mean']:.3g} [{', '.join(ends)}]"


def _section(experiment: Experiment, figure: str | None, effects: list[dict]) -> str:
    own = [row for row in effects if row["experiment"] == experiment.name]
    decided = [row for row in own if row["headline"]]
    parts = [
        f'<section id="{experiment.name}">',
        f"<h2>{experiment.number} {_text(experiment.title)}</h2>",
        *map(_quote, experiment.quotes),
        *(_verdict(row) for row in decided),
        _figure(figure, experiment.alt) if figure else "",
        _effect_table(own),
        *_document(experiment.document),
        '<div class="box"><strong>Literature:</strong> '
        f"{_text(experiment.literature)}</div>",
        f"<pre>{_text(own[0]['command'])}</pre>",
        "</section>",
    ]
    return "\n".join(parts)


def _quote(quote: Any) -> str:
    english = f"<small>{_text(quote.english)}</small>" if quote.english else ""
    return f"<blockquote>“{_text(quote.text)}”{english}</blockquote>"


def _verdict(row: dict) -> str:
    return (
        f"<p><span class='verdict {_class(row)}'>{row['claim']}: {row['verdict']}."
        "</span> "
        f"{_text(row['text'])}: {number(row)}, {_text(row['effect'])}; at least "
        f"{row['least']:.3g} supports it. {_WORDS[row['verdict']]} Literature: "
        f"{row['literature']}.</p>"
    )


def _document(text: str) -> list[str]:
    """The docstring without its first line, command and run time."""
    paragraphs = text.split("\n\n")[1:]
    kept = [p for p in paragraphs if not p.startswith(("Command:", "Runtime:"))]
    return [f"<p>{_text(textwrap.dedent(p))}</p>" for p in kept]


def _verdict_table(verdicts: list[dict]) -> str:
    rows = "".join(
        f"<tr><td><a href='#{row['experiment']}'>{row['claim']}</a></td>"
        f"<td>{_text(row['text'])}</td>"
        f"<td class='verdict {_class(row)}'>{row['verdict']}</td>"
        f"<td>{row['literature']}</td><td class=number>{number(row)}</td></tr>"
        for row in verdicts
    )
    head = "<tr><th></th><th>claim</th><th>measured</th><th>literature</th>"
    head += "<th>effect [95 %]</th></tr>"
    return f"<div class=scroll><table>{head}{rows}</table></div>"


def _effect_table(rows: list[dict]) -> str:
    cells = "".join(
        f"<tr><td>{_text(row['text'])}</td><td>{_text(row['effect'])}</td>"
        f"<td class=number>{number(row)}</td><td class=number>{row['least']:.3g}</td>"
        f"<td class=number>{_p(row)}</td>"
        f"<td class='{_class(row)}'>{row['verdict']}</td></tr>"
        for row in rows
    )
    head = "<th>comparison</th><th>number</th><th>mean [95 %]</th><th>needed</th>"
    return (
        f"<div class=scroll><table><tr>{head}<th>p</th><th>verdict</th></tr>"
        f"{cells}</table></div>"
    )


def _p(row: dict) -> str:
    return "—" if row["mean"] is None else f"{row['p_adjusted']:.2g}"


def _figure(svg: str, alt: str) -> str:
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{_text(alt)}"', 1)
    return f"<figure>{labelled}<figcaption>{_text(alt)}</figcaption></figure>"


def _forest_alt(verdicts: list[dict]) -> str:
    counts = [row["verdict"] for row in verdicts]
    found = (f"{counts.count(word)} {word}" for word in _WORDS if word in counts)
    return f"All claims: {', '.join(found)}."


def _made_with(loaded: dict[str, Any]) -> str:
    config, environment = loaded["config.json"], loaded["environment.json"]
    git = environment.get("git") or {}
    commit = git.get("commit", "unknown")[:12] + (" (changed)" * bool(git.get("dirty")))
    packages = environment.get("packages", {})
    seconds = loaded.get("timings.json", {}).get("seconds", 0)
    return (
        f"Preset {config['preset']}, seed {config['seed']}; commit {commit}; Python "
        f"{environment.get('python')}, jax {packages.get('jax')}, "
        f"{environment.get('cpu_count')} cores; all arms together took "
        f"{seconds / 60:.0f} minutes, two at a time."
    )


def _class(row: dict) -> str:
    return row["verdict"].replace(" ", "-")


def _text(text: str) -> str:
    return html.escape(text)
