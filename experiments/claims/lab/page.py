"""The page of a run: one HTML file that needs nothing else."""

import html
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims.lab.experiment import Experiment

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
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Claims about batch normalization, measured</title>
<style>{css}</style></head><body>
<h1>What introductions to batch normalization claim, measured</h1>
<p class=soft>{made_with}</p>
{forest}
<p class=soft>Each row is the mean over the starts with its 95 % interval, as a \
distance from the smallest effect that would support the claim, in the units its rule \
names. At the right: what published work says (+ supported, − contradicted, ± \
qualified). Rules are part of the code. Some were changed while developing with runs \
of seed 0, so a run with another seed is the fairer test of them.</p>
{table}
{sections}
</body></html>

"""


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
    return _filled(
        _PAGE,
        css=_Html(_CSS.read_text()),
        made_with=_made_with(loaded),
        forest=_figure(figures["forest"], _forest_alt(verdicts)),
        table=_verdict_table(verdicts),
        sections=[_section(one, figures.get(one.name), effects) for one in experiments],
    )


def number(row: dict) -> str:
    """Returns an effect with its interval, such as "1.5 [1.2, 1.8]"."""
    if row["mean"] is None:
        return "—"
    ends = ("∞" if row[key] is None else f"{row[key]:.3g}" for key in ("low", "high"))
    return f"{row['mean']:.3g} [{', '.join(ends)}]"


class _Html(str):
    """Text that is HTML already."""


def _filled(template: str, /, **values: Any) -> _Html:
    """The template with values in it: lists joined, and what is not HTML escaped."""
    return _Html(template.format(**{k: _escaped(v) for k, v in values.items()}))


def _escaped(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_escaped, value))
    return value if isinstance(value, _Html) else html.escape(str(value))


def _section(experiment: Experiment, figure: str | None, effects: list[dict]) -> _Html:
    own = [row for row in effects if row["experiment"] == experiment.name]
    return _filled(
        '<section id="{name}">\n<h2>{number} {title}</h2>\n{quotes}\n{verdicts}\n'
        "{figure}\n{table}\n{document}\n"
        '<div class="box"><strong>Literature:</strong> {literature}</div>\n'
        "<pre>{command}</pre>\n</section>",
        name=experiment.name,
        number=experiment.number,
        title=experiment.title,
        quotes=[_quote(quote) for quote in experiment.quotes],
        verdicts=[_verdict(row) for row in own if row["headline"]],
        figure=_figure(figure, experiment.alt) if figure else "",
        table=_effect_table(own),
        document=_document(experiment.document),
        literature=experiment.literature,
        command=own[0]["command"],
    )


def _quote(quote: Any) -> _Html:
    english = _filled("<small>{text}</small>", text=quote.english)
    return _filled(
        "<blockquote>“{text}”{english}</blockquote>",
        text=quote.text,
        english=english if quote.english else "",
    )


def _verdict(row: dict) -> _Html:
    return _filled(
        "<p><span class='verdict {kind}'>{claim}: {verdict}.</span> {text}: {number}, "
        "{effect}; at least {least} supports it. {words} Literature: {literature}."
        "</p>",
        **_shown(row),
        words=_WORDS[row["verdict"]],
    )


def _document(text: str) -> list[_Html]:
    """The docstring without its first line, command and run time."""
    paragraphs = text.split("\n\n")[1:]
    kept = [p for p in paragraphs if not p.startswith(("Command:", "Runtime:"))]
    return [_filled("<p>{text}</p>", text=textwrap.dedent(p)) for p in kept]


def _verdict_table(verdicts: list[dict]) -> _Html:
    row = (
        "<tr><td><a href='#{experiment}'>{claim}</a></td><td>{text}</td>"
        "<td class='verdict {kind}'>{verdict}</td><td>{literature}</td>"
        "<td class=number>{number}</td></tr>"
    )
    return _filled(
        "<div class=scroll><table><tr><th></th><th>claim</th><th>measured</th>"
        "<th>literature</th><th>effect [95 %]</th></tr>{rows}</table></div>",
        rows=[_filled(row, **_shown(one)) for one in verdicts],
    )


def _effect_table(rows: list[dict]) -> _Html:
    row = (
        "<tr><td>{text}</td><td>{effect}</td><td class=number>{number}</td>"
        "<td class=number>{least}</td><td class=number>{p}</td>"
        "<td class='{kind}'>{verdict}</td></tr>"
    )
    return _filled(
        "<div class=scroll><table><tr><th>comparison</th><th>number</th>"
        "<th>mean [95 %]</th><th>needed</th><th>p</th><th>verdict</th></tr>"
        "{rows}</table></div>",
        rows=[_filled(row, **_shown(one)) for one in rows],
    )


def _shown(row: dict) -> dict[str, Any]:
    """A row with its numbers as they are shown, and the class of its verdict."""
    return row | {
        "number": number(row),
        "least": f"{row['least']:.3g}",
        "p": "—" if row["mean"] is None else f"{row['p_adjusted']:.2g}",
        "kind": row["verdict"].replace(" ", "-"),
    }


def _figure(svg: str, alt: str) -> _Html:
    # Matplotlib escapes what it draws.
    label = _filled('<svg role="img" aria-label="{alt}"', alt=alt)
    return _filled(
        "<figure>{svg}<figcaption>{alt}</figcaption></figure>",
        svg=_Html(svg.replace("<svg", label, 1)),
        alt=alt,
    )


def _forest_alt(verdicts: list[dict]) -> str:
    counts = [row["verdict"] for row in verdicts]
    found = (f"{counts.count(word)} {word}" for word in _WORDS if word in counts)
    return f"All claims: {', '.join(found)}."


def _made_with(loaded: dict[str, Any]) -> str:
    config, environment = loaded["config.json"], loaded["environment.json"]
    git = environment["git"] or {"commit": "unknown", "dirty": False}
    return (
        f"Preset {config['preset']}, seed {config['seed']}; commit "
        f"{git['commit'][:12]}{' (changed)' * git['dirty']}; Python "
        f"{environment['python']}, jax {environment['packages'].get('jax')}, "
        f"{environment['cpu_count']} cores; all arms together took "
        f"{loaded['timings.json']['seconds'] / 60:.0f} minutes, two at a time."
    )
