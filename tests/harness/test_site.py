"""The site: the content of its pages, without a browser; see test_site_in_a_browser.py for the rest."""

import importlib
import inspect
import json
import re
import sys
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from site_parts import Page
from typer.testing import CliRunner

from twinloss import fast, harness, reference
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.drawing import coverage
from twinloss.harness.losses.catalogue import TWINS, find
from twinloss.harness.site import books, code, docstrings, formulas, record, run
from twinloss.harness.site.build import SitePlan, build

NAMES = [twin.name for twin in TWINS]


@pytest.fixture(scope="module")
def pages(site):
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_a_page_with_formula_code_gradient_options_evidence_and_speed(name, pages):
    page = pages[f"losses/{name}.html"]
    assert {"formula", "code", "gradient", "options", "when", "evidence", "speed"} <= set(page.ids)
    assert page.all("math", display="block")
    assert [each for each in page.all("td", **{"class": "beside"}) if "\\" in each["text"]], "no equation beside a line"
    assert len(page.all("li", **{"class": "good"}) + page.all("li", **{"class": "bad"})) in (5, 6)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_stands_in_the_table_with_its_default_and_what_it_does(name, pages):
    known = record.record(find(name))
    signature = inspect.signature(known.loss).parameters
    told = {each["id"]: each["text"] for each in pages[f"losses/{name}.html"].all("tr") if "id" in each}
    for option in {*find(name).options, *signature}:
        assert len(told[f"option-{option}"].split()) > 3, option
    for option, parameter in signature.items():
        if isinstance(parameter.default, (bool, int, float, str)):
            assert str(parameter.default) in told[f"option-{option}"]


def test_all_links_and_images_lead_somewhere(site, pages):
    for name, page in pages.items():
        for each in page.elements:
            target = each.get("href") or each.get("src") or ""
            parts = urlsplit(target)
            if not target or parts.scheme in ("http", "https", "data"):
                continue
            path = (site / name).parent / unquote(parts.path) if parts.path else site / name
            assert path.exists(), f"{name}: {target}"
            if parts.fragment:
                there = pages[str(path.resolve().relative_to(site.resolve()))]
                assert unquote(parts.fragment) in there.ids, f"{name}: {target}"


def test_a_page_loads_nothing_from_elsewhere(site, pages):
    for name, page in pages.items():
        for each in page.elements:
            loaded = each.get("src") or (each.get("href") if each["tag"] == "link" else "") or ""
            assert not loaded.startswith(("http", "//")), f"{name}: {loaded}"
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        if path.name != "search-index.js":
            assert not re.search(r"https?://(?!www\.w3\.org)|@import|fetch\(", path.read_text()), path


def test_no_anchor_stands_twice(pages):
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name


@pytest.mark.parametrize("name", NAMES)
def test_from_formula_to_code_to_evidence_to_speed_in_three_clicks(name, pages):
    page = pages[f"losses/{name}.html"]
    here = {each["href"] for each in page.all("a") if each.get("href")}
    assert {"#code", "#evidence", "#speed"} <= here
    start = {each["href"] for each in pages["index.html"].all("a") if each.get("href")}
    assert {f"losses/{name}.html#{part}" for part in ("formula", "code", "evidence", "speed")} <= start


def test_all_formulas_become_mathml_and_text():
    for name, thing in [*vars(reference).items(), *vars(fast).items()]:
        for latex in docstrings.equations(thing) if callable(thing) else ():
            for part in formulas.parts_of(latex):
                bare = re.sub("<annotation.*</annotation>", "", formulas.mathml(part))
                assert "\\" not in bare, f"{name}: {latex}"
                assert "<mi></mi>" not in bare
            assert not re.search(r"[\\&]|frac", formulas.plain(latex)), formulas.plain(latex)


def test_all_that_is_written_by_hand_becomes_mathml_and_fits_the_code():
    for twin in TWINS:
        known = record.record(twin)
        effects = " ".join(docstrings.inline(text) for text in {**record.table("options"), **known.effects}.values())
        assert "\\" not in re.sub("<annotation.*?</annotation>", "", effects)
        for latex in [*known.beside.values(), *(symbol for symbol, _ in known.symbols)]:
            assert "\\" not in re.sub("<annotation.*</annotation>", "", formulas.mathml(latex)), latex
    for name, beside in record.table("steps").items():
        source = inspect.getsource(importlib.import_module(f"twinloss.reference.steps.{name}"))
        assert code.unused(source, beside) == [], name


def test_words_in_a_formula_stay_words():
    assert "<mtext>of&#x000A0;the&#x000A0;sigmoid&#x000A0;</mtext>" in formulas.mathml(r"\text{of the sigmoid } x")
    assert "<mi>sigmoid</mi>" in formulas.mathml("sigmoid(x)")


def test_a_fraction_and_a_root_in_the_terminal_keep_their_brackets():
    assert formulas.plain(r"1 - \frac{2 I + \nu}{D}") == "1 − (2I + ν)/D"
    assert formulas.plain(r"1 / \sqrt{PQ}") == "1/√(PQ)"
    assert formulas.plain(r"\sum_i p_i^2, \qquad x = -1") == "∑ᵢ pᵢ²,  x = −1"


def test_comments_stand_beside_the_code_and_not_in_it():
    first, second = code.lines("x = 1  # one\ny = x**2\n", {"x**2": "y = x^2"})
    assert (first.beside, "one" in first.code) == ("<span>one</span>", False)
    assert "<msup>" in second.beside


def test_an_equation_beside_a_line_that_is_gone_is_an_error(monkeypatch, tmp_path):
    real = record.table
    monkeypatch.setattr(
        record, "table", lambda name: {**real(name), "beside": {"no such line": "x"}} if name == "dice" else real(name)
    )
    with pytest.raises(record.ContentError, match=r"no line of twinloss\.reference\.dice has no such line"):
        build(SitePlan(tmp_path, tmp_path, None, real=False))


def test_a_loss_without_content_is_an_error_that_says_what_to_write(monkeypatch):
    monkeypatch.setattr(record, "CONTENT", Path("nowhere"))
    record.table.cache_clear()
    with pytest.raises(record.ContentError, match=r"nowhere/dice\.toml is missing"):
        record.record(find("dice"))
    done = CliRunner().invoke(with_all_commands(), ["explain", "dice"])
    assert done.exit_code == 2
    assert "dice.toml" in done.output
    record.table.cache_clear()


def test_what_cites_no_known_source_is_an_error(monkeypatch):
    real = record.table
    use = [{"good": True, "text": "so they say", "source": "hearsay"}]
    monkeypatch.setattr(record, "table", lambda name: {**real(name), "use": use} if name == "dice" else real(name))
    with pytest.raises(record.ContentError, match="hearsay"):
        record.record(find("dice"))


def test_the_run_is_shown_with_verdicts_histograms_counterexample_and_command(pages):
    page = pages["evidence.html"]
    text = next(each["text"] for each in page.all("main"))
    assert "twinloss verify dice focal --seed 7 --examples 5 --dtype float32 --no-real" in text
    assert "print('a script')" in text
    assert "2 results: 0.5 to 1 bits" in text
    assert len(page.all("svg")) == 4
    for file in ("evidence.html", "index.html"):
        assert len(pages[file].all("span", **{"class": "verdict interrupted"})) == 1
    assert [each["text"] for each in page.all("span", **{"class": "verdict fail"})] == ["fail"]
    assert "✗" not in pages["losses/tversky.html"].all("section", id="evidence")[0]["text"]
    assert "print('a script')" in pages["losses/focal.html"].all("section", id="evidence")[0]["text"]


def test_pairs_of_options_stand_in_a_triangle():
    twin = find("focal")
    possible = coverage.possible_pairs(twin)
    names, counts = run.pairs({"pairs": {"by_option": coverage.by_option(set(list(possible)[:50]), possible)}})
    assert names == list(twin.options)
    assert set(counts) == set(combinations(names, 2))
    assert sum(tried for tried, _ in counts.values()) == 50
    assert sum(all_of for _, all_of in counts.values()) == len(possible)


def test_reports_are_pages_and_a_loss_has_its_rows(pages):
    for name in ("zoo", "benchmarks", "reliability", "errata"):
        assert len(pages[f"reports/{name}.html"].all("tr")) > 10
    speed = pages["losses/dice.html"].all("section", id="speed")[0]["text"]
    assert "MONAI" in speed
    assert "dice_ce" not in speed
    assert "twinloss bench" in speed


def test_what_is_not_there_is_said_with_the_command_that_makes_it(tmp_path):
    build(SitePlan(tmp_path / "site", tmp_path, None, real=False))
    text = {path.stem: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert "run <code>twinloss verify</code>" in text["evidence"]
    assert "run <code>twinloss zoo --seed 0 --out reports</code>" in text["zoo"]
    assert "run <code>twinloss verify dice</code>" in text["dice"]
    assert "--no-real" in text["mutual_information"]


def test_reports_are_found_beside_the_code_and_not_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert books.where() == Path(books.__file__).resolve().parents[2] / "reports"
    (tmp_path / "reports").mkdir()
    assert books.where() == Path("reports")


REPORT = """# Two ways

Made by `twinloss two`. See [the zoo](zoo.md), [a file](../somewhere.py) and [a picture](way.png).

## FocalLoss

| what | how many | |
|---|---:|---|
| this | 3 | passed |

```python
FocalLoss()
```

## DiceLoss

That.
"""


def test_a_report_that_nobody_knew_of_is_a_page_and_a_part_of_a_loss(tmp_path):
    (tmp_path / "two.md").write_text(REPORT)
    (tmp_path / "zoo.md").write_text("# The zoo\n")
    (tmp_path / "way.png").write_bytes(b"")
    book = next(each for each in books.load(tmp_path) if each.name == "two")
    assert (book.title, book.command) == ("Two ways", "twinloss two")
    assert '<a href="zoo.html">' in book.html
    assert '<a href="way.png">' in book.html
    assert "somewhere" not in book.html
    part = book.part("focal", "FocalLoss")
    assert '<td class="verdict passed">passed</td>' in part
    assert '<td class="right">3</td>' in part
    assert "That." not in part
    assert '<pre class="code"' in part
    books.copy_others(tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["way.png"]


def test_a_row_is_about_the_loss_that_it_names_and_no_other():
    table = books.ReportTable(["loss"], [""], [["dice"], ["dice_ce"], ["<code>dice</code>"], ["dice, float16, 256³"]])
    assert [row[0] for row in table.about("dice").rows] == ["dice", "<code>dice</code>", "dice, float16, 256³"]


def test_every_public_name_is_in_the_api_reference(pages):
    for wing in (reference, fast, harness):
        page = pages[f"api/{wing.__name__.rpartition('.')[2]}.html"]
        assert set(wing.__all__) <= set(page.ids)
    assert {"Twin", "Law", "model.real_case.RealCase"} <= set(pages["api/harness.html"].ids)


def test_the_same_code_gives_the_same_pages(pages):
    for name, page in pages.items():
        assert not re.search(r" at 0x[0-9a-f]+", page.path.read_text()), name


def test_the_index_of_the_search_holds_losses_options_and_names(site):
    index = json.loads((site / "search-index.json").read_text())
    titles = {entry["title"] for entry in index}
    assert {"Dice loss", "soft_label of DiceLoss", "dice_loss_gradient", "Reliability"} <= titles
    assert all((site / entry["url"].partition("#")[0]).exists() for entry in index)


@pytest.mark.parametrize("name", NAMES)
def test_explain_shows_the_short_form(name):
    done = CliRunner().invoke(with_all_commands(), ["explain", name])
    known = record.record(find(name))
    assert done.exit_code == 0, done.output
    assert known.title in done.output
    assert "∂" in done.output or "gradient" in done.output.lower()
    assert "\\" not in done.output
    assert ":math:" not in done.output


def test_explain_of_an_unknown_loss_suggests_the_nearest():
    done = CliRunner().invoke(with_all_commands(), ["explain", "dise"])
    assert done.exit_code == 2
    assert "did you mean 'dice'?" in done.output


def test_a_missing_extra_is_said_with_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "latex2mathml", None)
    for command in (["report", "--out", str(tmp_path)], ["explain", "dice"]):
        done = CliRunner().invoke(with_all_commands(), command)
        assert done.exit_code == 1
        assert 'pip install "twinloss[reports]"' in done.output


def test_a_folder_of_reports_that_is_not_there_is_a_usage_error(tmp_path):
    done = CliRunner().invoke(
        with_all_commands(), ["report", "--out", str(tmp_path), "--reports", str(tmp_path / "none")]
    )
    assert done.exit_code == 2
    assert "there is no such folder" in re.sub(r"[\s│]+", " ", done.output)


def test_a_run_that_cannot_be_read_is_a_usage_error(tmp_path):
    (tmp_path / "report.json").write_text("{")
    done = CliRunner().invoke(with_all_commands(), ["report", "--out", str(tmp_path / "site"), "--run", str(tmp_path)])
    assert done.exit_code == 2
    assert "cannot read" in done.output


def test_the_command_writes_the_site_and_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(with_all_commands(), ["report", "--no-real"])
    assert done.exit_code == 0, done.output
    assert "wrote site/index.html" in done.output
    assert (tmp_path / "site" / "losses" / "dice.html").exists()


def test_the_tutorial_for_pairs_is_a_page_with_highlighted_code(pages):
    page = pages["pairs.html"]
    assert any("twin_check" in each["text"] for each in page.all("pre"))
    assert page.all("pre", **{"class": "code"})
