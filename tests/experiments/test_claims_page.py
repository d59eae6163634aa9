"""The page and the summary of a run: nothing from outside, readable, sources named."""

import itertools
import json
import re
import shutil
import subprocess
import types

import pytest
from claims_runs import COINS, use_coins
from sweeps import but_slow

from experiments.__main__ import main
from experiments.claims import report
from experiments.claims.lab import figures, page, schema
from experiments.claims.lab.rules import Quote, claims
from experiments.common.records import DamagedError


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A finished run with its report, to be looked at only."""
    out = tmp_path_factory.mktemp("reported") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_coins(patch)
        words = ["run", "definitions", *COINS, "--preset", "quick", "--jobs", "1"]
        assert main([*words, "--seed", "0", "--out", str(out)]) == 0
        assert main(["report", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def text(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


def test_the_first_screen_counts_and_names_verdicts(text, reported):
    first = text[text.index("<h1") : text.index("<figure")]
    assert "1 supported, 1 undecided, 3 exact, 3 wrong" in first
    for row in schema.load(reported / "verdicts.json")["verdicts"]:
        assert row["text"] in first and row["in_words"] in first
    for name in ("contents", "method"):
        assert f'id="{name}"' in first


def test_every_link_of_the_page_leads_somewhere(text):
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'<a href="#([^"]+)"', text)) <= ids


def test_quotes_name_their_source_and_are_in_both_languages(text):
    (quote, *_) = claims().rules["C02"].quotes
    source = claims().sources[quote.source]
    assert quote.english
    assert f"“{quote.text}” <cite>{source}</cite><small>{quote.english}" in text
    index = text[text.index('id="sources"') : text.index('id="corrections"')]
    assert f"<h3>{source}</h3>" in index and quote.text in index


@pytest.mark.slow
def test_sentences_to_correct_are_shown_with_code_that_runs(text):
    import jax
    import jax.numpy as jnp

    import jaxbn
    import jaxbn.linen

    names = {"jax": jax, "jnp": jnp, "jaxbn": jaxbn, "key": jax.random.key(0)}
    shown = []
    for one in claims().wording:
        *before, last = one.code.splitlines()
        exec("\n".join(before), names)
        shown.append(eval(last, names))
        assert one.text in text
    largest, shape, (alone, other) = shown
    assert largest > 5 and shape == (64,) and alone != other


def test_methods_are_before_tables_and_p_values_say_what_they_are(text):
    section = text[text.index('<section id="clear"') :]
    section = section[: section.index("</section>")]
    assert section.index("Measured: coins") < section.index("<table")
    assert "<small>corrected</small>" in section and "<small>raw</small>" in section
    assert section.count("<figure>") == 2


def test_the_summary_shows_what_an_undecided_claim_needs(reported):
    shown = (reported / "README.md").read_text(encoding="utf-8")
    assert re.search(r"undecided \(about \d+ starts would decide\)", shown)
    assert schema.load(reported / "config.json")["rules"] in shown


def test_the_table_of_a_readme_is_written_anew(reported, tmp_path, capsys):
    out, readme = shutil.copytree(reported, tmp_path / "run"), tmp_path / "README.md"
    mark = f"<!-- claims of {out} -->\n"
    readme.write_text(f"before\n{mark}| old |\n<!-- end -->\nafter\n")
    with pytest.MonkeyPatch.context() as patch:
        use_coins(patch)
        assert main(["report", str(out), "--readme", str(readme)]) == 0
        table = page.table(schema.load(out / "verdicts.json")["verdicts"])
        shown = readme.read_text(encoding="utf-8")
        assert shown == f"before\n{mark}{table}\n<!-- end -->\nafter\n"
        readme.write_text("no table\n")
        assert main(["report", str(out), "--readme", str(readme)]) == 2
    assert "`--readme` must have the line" in capsys.readouterr().err


@pytest.mark.slow
def test_another_run_stands_beside_in_the_table(reported, tmp_path, capsys):
    words = ["run", "definitions", *COINS, "--preset", "quick", "--jobs", "1"]
    other, readme = tmp_path / "other", tmp_path / "README.md"
    mark = f"<!-- claims of {reported} beside {other} -->\n"
    readme.write_text(f"{mark}<!-- end -->\n")
    given = ["--beside", str(other), "--readme", str(readme)]
    with pytest.MonkeyPatch.context() as patch:
        use_coins(patch)
        assert main([*words, "--seed", "5", "--out", str(other)]) == 0
        assert main(["report", str(reported), *given]) == 0
        assert (
            "1 of 1 decided claims have the same outcome in" in capsys.readouterr().out
        )
        given[1] = str(reported)
        assert main(["report", str(reported), *given]) == 2
        given[1] = str(tmp_path)
        assert main(["report", str(reported), *given]) == 2
    first, second = (schema.load(one / "verdicts.json") for one in (reported, other))
    shown = readme.read_text(encoding="utf-8")
    assert shown == f"{mark}{page.table(first['verdicts'], second)}\n<!-- end -->\n"
    assert "| seed 5 |" in shown
    error = capsys.readouterr().err
    assert "`--beside` must be a run with other starts, got" in error
    assert "`--beside` must hold the files of a run, got" in error


def test_outcomes_are_compared_where_starts_could_change_them():
    def run(**words):
        return [{"claim": name, "verdict": word} for name, word in words.items()]

    first = run(a="supported", b="reversed", c="exact", d="undecided", e="negligible")
    other = run(a="supported", b="supported", c="exact", d="supported", e="undecided")
    assert page.agreement(first, other).startswith("1 of 3 decided claims")


@pytest.mark.slow
def test_something_to_try_prints_three_nets(capsys):
    from experiments.claims import play

    play.main(play.PlayConfig(batch=4, steps=2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "batch normalization" in lines[3]


def test_the_report_needs_nothing_else(reported):
    text = (reported / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\((?!#)", text)
    assert "<script" not in text
    assert text.index("forest-") < text.index("<section")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in ("forest", "clear", "clear-starts"):
        assert (reported / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert (reported / "figures" / f"{name}.svg").is_file()


VIEWS = list(itertools.product(("light", "dark"), (390, 1000)))


@pytest.mark.parametrize(("scheme", "width"), but_slow(VIEWS, VIEWS[1:3]))
def test_a_browser_shows_the_page(reported, tmp_path, width, scheme):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    size = [f"--window-size={max(width, 500)},900", f"--screenshot={picture}"]
    page = (reported / "report.html").as_uri()
    command = [chromium, *options, *dark, *size, page]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    paper = pixels[5, 5].mean()
    assert (paper < 0.2) if scheme == "dark" else (paper > 0.9)
    assert pixels.std() > 0.03  # Text and figures, not an empty page.


EVIL = """<script>alert(1)</script>"><img src=x onerror=1>' onload='1 {text} &amp;"""


def spoiled(value):
    """The content of a file with every text in it replaced; verdicts are checked."""
    if isinstance(value, dict):
        kept = {"verdict", "experiment", "name", "kind"}
        return {k: v if k in kept else spoiled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_what_comes_from_files_is_never_a_tag_of_the_page(reported):
    texts = ("number", "title", "alt", "literature")
    loaded = {n: json.loads((reported / n).read_text()) for n in report.FILES}

    def draw(figure):
        axes = figure.subplots()
        axes.plot([1], label=EVIL)
        axes.set_title(EVIL)
        axes.legend()

    def made(loaded, text):
        svg, _, _ = figures.render(draw, salt="x", size=(16, 9))
        one = types.SimpleNamespace(name="clear", **dict.fromkeys(texts, text))
        one.quotes, one.document = [Quote("0", text, text)], f"\n\n{text}"
        return page.page(
            [one], {"forest": svg, one.name: svg, "clear starts": svg}, loaded
        )

    clean, bad = made(loaded, "text"), made(spoiled(loaded), EVIL)
    tag = re.compile(r"""<(?:"[^"]*"|'[^']*'|[^'">])*>""")
    assert bad.count("&lt;script&gt;") > 50 and "{text}" in bad
    assert re.findall("<[^ >]*", bad) == re.findall("<[^ >]*", clean)
    for found in tag.findall(bad):
        bare = re.sub(r"""=("[^"]*"|'[^']*')""", "", found)
        assert not re.search(r"\son\w+", bare), found


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("environment.json", ("git",), "text"),
        ("environment.json", ("git", "commit"), 3),
        ("environment.json", ("packages",), ["jax"]),
        ("config.json", ("preset",), ["quick"]),
        ("timings.json", ("seconds",), 10**400),
        ("timings.json", ("seconds",), float("nan")),
        ("timings.json", ("schema",), {}),
    ],
)
def test_files_with_other_types_are_not_those_of_a_run(
    reported, tmp_path, name, path, value
):
    content = inner = schema.load(reported / name)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"^'.*' must be whole, but: .*\.$"):
        schema.load(tmp_path / name)
