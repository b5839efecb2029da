"""The site in a real browser: Debian's chromium, driven by playwright."""

import json
import os
import shutil

import numpy as np
import pytest

from twinloss import reference
from twinloss.reference.local_normalized_cross_correlation import LNCCOptions, window_weights

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
VOXELS = 4096


def test_in_ci_there_is_a_browser():
    """Else all that follows would be skipped, and nobody would know."""
    if os.environ.get("CI"):
        assert CHROMIUM, "no chromium: apt-get install chromium"


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'twinloss[test]'")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(site):
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))


class Visitor:
    """A tab that remembers what went wrong in it and what it asked for."""

    def __init__(self, context, site):
        self.site, self.problems, self.requests = site, [], []
        self.tab = context.new_page()
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type != "log" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.problems.append(request.url))
        self.tab.on("request", lambda request: self.requests.append(request.url))

    def go(self, file):
        self.tab.goto((self.site / file).as_uri())
        return self.tab


@pytest.fixture
def visitor(browser, site):
    context = browser.new_context()
    yield Visitor(context, site)
    context.close()


@pytest.fixture
def phone(browser, site):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    yield Visitor(context, site)
    context.close()


def move(tab, figure, **values):
    """Move sliders as a reader does."""
    for name, value in values.items():
        tab.evaluate(
            """([figure, name, value]) => {
                const input = document.querySelector(`#${figure} input[name=${name}]`);
                input.value = value;
                input.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [figure, name, value],
        )


def readout(tab, figure):
    """The rows of a figure's table, with all digits."""
    rows = tab.evaluate(
        """figure => [...document.querySelectorAll(`#${figure} table.readout tbody tr`)].map(row => [
            row.querySelector("th").textContent, ...[...row.querySelectorAll("td")].map(cell => cell.dataset.value)
        ])""",
        figure,
    )
    return {name: [json.loads(cell) for cell in cells] for name, *cells in rows}


def drawn(tab, figure, part):
    """The numbers of the curves in a plot, and the paths that show them."""
    return tab.evaluate(
        """([figure, part]) => Object.fromEntries(
            [...document.querySelectorAll(`#${figure} [data-plot=${part}] path.curve`)].map(path =>
                [path.dataset.curve, { ...path.values, path: path.getAttribute("d") }]))""",
        [figure, part],
    )


def test_pages_load_without_errors_and_without_a_request_that_leaves(visitor, files):
    for file in files:
        visitor.go(file)
    assert visitor.problems == []
    assert {url.partition(":")[0] for url in visitor.requests} <= {"file", "data"}
    assert len(visitor.requests) > len(files)


def test_formulas_are_visible_and_take_the_room_of_math(visitor, files):
    for file in (each for each in files if each.startswith("losses/")):
        tab = visitor.go(file)
        boxes = tab.evaluate(
            """() => [...document.querySelectorAll("math")].filter(each => each.checkVisibility()).map(each => {
                const box = each.getBoundingClientRect();
                return [box.width, box.height];
            })"""
        )
        assert len(boxes) > 10, file
        assert np.min(boxes) > 3, file
        tall = "() => document.querySelector('.eq mfrac, .eq munder, .eq msub').getBoundingClientRect().height"
        assert tab.evaluate(tall) > 10, file


def test_a_page_is_as_wide_as_a_phone(phone, files):
    wide = {file: phone.go(file).evaluate("document.documentElement.scrollWidth") for file in files}
    assert {file: width for file, width in wide.items() if width > 390} == {}
    assert phone.problems == []


# A page of each kind, and of each figure.
KINDS = (
    "index.html", "evidence.html", "losses/dice.html", "losses/lncc.html", "losses/bending_energy.html",
    "losses/mutual_information.html", "code/activation.html", "reports/zoo.html", "api/reference.html",
)  # fmt: skip


@pytest.mark.parametrize(
    ("who", "file"), [("visitor", each) for each in KINDS] + [("phone", each) for each in KINDS[:4]]
)
def test_a_page_passes_the_accessibility_check(who, file, request):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'twinloss[test]'").Axe()
    found = axe.run(request.getfixturevalue(who).go(file), context={"exclude": [["math"]]}).response["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"][:2]]) for each in found] == []


SCENES = (
    {},
    {"p": 0.905, "q": 0.3, "size": 3, "smooth": 1, "alpha": 1.2, "beta": 0.1, "gamma": 0.5, "focalAlpha": 0.75},
    {"p": 0.05, "q": 0.005, "size": 11.5, "smooth": -7, "alpha": 0, "beta": 2, "gamma": 5, "focalAlpha": 1},
)
DEFAULTS = {"p": 0.5, "q": 0.05, "size": 8, "smooth": -5, "alpha": 0.3, "beta": 0.7, "gamma": 2, "focalAlpha": 0.25}


def by_reference(scene, p):
    """Loss, and its gradient in the logits, added up over the object, of each curve."""
    o = {**DEFAULTS, **scene}
    size, smooth = round(2 ** o["size"]), 10.0 ** o["smooth"]
    given = np.where(np.arange(VOXELS) < size, p, o["q"])
    target = (np.arange(VOXELS) < size).astype(float)
    x, g = np.log(given / (1 - given))[None, None], target[None, None]
    both, labels = np.concatenate([0 * x, x], 1), g
    smoothing = {"smooth_nr": smooth, "smooth_dr": smooth}
    one = {"sigmoid": True, **smoothing}
    focal = {"use_softmax": False, "gamma": o["gamma"], "alpha": o["focalAlpha"]}
    cases = {
        "Dice": ("dice", x, g, one),
        "Jaccard": ("dice", x, g, {**one, "jaccard": True}),
        "Tversky": ("tversky", x, g, {**one, "alpha": o["alpha"], "beta": o["beta"]}),
        "generalised Dice": ("generalized_dice", both, labels, {"softmax": True, "to_onehot_y": True, **smoothing}),
        "focal": ("focal", x, g, focal),
        "cross entropy": ("dice_ce", x, g, {"lambda_dice": 0.0}),
        "Dice + cross entropy": ("dice_ce", x, g, one),
        "Dice + focal": ("dice_focal", x, g, {**one, **focal}),
    }
    made = {}
    for title, (name, input, y, options) in cases.items():
        gradient = getattr(reference, f"{name}_loss_gradient")(input, y, **options)[0, -1]
        made[title] = [float(getattr(reference, f"{name}_loss")(input, y, **options)), float(gradient[:size].sum())]
    return made


def show_all(tab, figure):
    tab.evaluate(f"document.querySelectorAll('#{figure} .legend button[aria-pressed=false]').forEach(b => b.click())")


@pytest.mark.parametrize("scene", SCENES)
def test_sliders_move_the_curves_to_the_values_of_the_reference(scene, visitor):
    tab = visitor.go("losses/dice.html")
    show_all(tab, "overlap")
    before = drawn(tab, "overlap", "loss")
    move(tab, "overlap", **scene)
    found, expected = readout(tab, "overlap"), by_reference(scene, {**DEFAULTS, **scene}["p"])
    assert found.keys() == expected.keys()
    for title, values in expected.items():
        np.testing.assert_allclose(found[title], values, rtol=1e-9, atol=1e-15, err_msg=title)
    for k, part in enumerate(("loss", "gradient")):
        curves = drawn(tab, "overlap", part)
        assert len(curves) == len(expected)
        for n in (0, 60, 198):
            at = by_reference(scene, curves["dice"]["x"][n])
            for curve, title in zip(curves.values(), expected, strict=True):
                np.testing.assert_allclose(curve["y"][n], at[title][k], rtol=1e-9, atol=1e-15, err_msg=title)
    after = drawn(tab, "overlap", "loss")
    assert not scene or all(after[name]["path"] != before[name]["path"] for name in before)
    assert visitor.problems == []


@pytest.mark.parametrize("size", [1, 5, 21])
def test_windows_are_those_of_the_reference(size, visitor):
    tab = visitor.go("losses/lncc.html")
    move(tab, "windows", size=size)
    found = readout(tab, "windows")
    for kind in ("rectangular", "triangular", "gaussian"):
        options = LNCCOptions(ndim=1, kernel_size=size, kernel_type=kind)
        _, (weights,) = window_weights(np.zeros((1, 1, 9)), options)
        np.testing.assert_allclose(found[kind][0], weights[size // 2 :], rtol=1e-12)
        share = drawn(tab, "windows", "weights")[kind]["y"]
        np.testing.assert_allclose(share[1:-1], weights / weights.sum(), rtol=1e-12)


@pytest.mark.parametrize(("frequency", "amplitude"), [(0.5, 0.6), (0.25, 1), (0.078125, 0.35)])
def test_stencils_cost_what_the_reference_says(frequency, amplitude, visitor):
    tab = visitor.go("losses/bending_energy.html")
    move(tab, "stencils", frequency=frequency, amplitude=amplitude)
    found = readout(tab, "stencils")
    i, j = np.indices((33, 33))
    field = amplitude * np.sqrt(2) * np.cos(2 * np.pi * frequency * (i + j) + np.pi / 4)
    for stencil in ("compact", "wide"):
        energy = float(reference.bending_energy_loss(field[None, None], stencil=stencil))
        assert found[stencil][0] == pytest.approx(energy, rel=1e-9, abs=1e-12)
    if frequency == 0.5:
        assert found["compact"][0] == pytest.approx(32 * amplitude**2)
        assert abs(found["wide"][0]) < 1e-20


def test_the_slider_of_histograms_shows_each_with_its_information(visitor):
    tab = visitor.go("losses/mutual_information.html")
    information = "document.querySelector('#histograms [data-read=information]').dataset.value"
    first = float(tab.evaluate(information))
    picture = "document.querySelector('#histograms img').src.split('/').pop()"
    assert tab.evaluate(picture) == "joint-0.png"
    move(tab, "histograms", which=4)
    assert tab.evaluate(picture) == "joint-4.png"
    assert 0 < float(tab.evaluate(information)) < first
    tab.wait_for_function("document.querySelector('#histograms img').complete")
    assert tab.evaluate("document.querySelector('#histograms img').naturalWidth") > 20


def test_the_search_finds_a_loss_by_keyboard(visitor):
    tab = visitor.go("losses/dice.html")
    tab.keyboard.press("/")
    tab.keyboard.type("tversky loss")
    assert tab.locator("#found li").first.inner_text().startswith("Tversky loss")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/losses/tversky.html")
    tab.keyboard.press("/")
    tab.keyboard.type("no such thing anywhere")
    assert tab.locator("#found").is_hidden()


def test_the_button_changes_between_light_and_dark(visitor):
    tab = visitor.go("index.html")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(paper)
    tab.click("#theme")
    assert tab.evaluate(paper) != light
    assert "dark" in tab.evaluate("document.documentElement.className")
    tab.click("#theme")
    assert tab.evaluate(paper) == light


def test_the_system_says_whether_a_page_is_dark_at_first(phone):
    tab = phone.go("index.html")
    red, *_ = map(int, tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    assert red < 60


def test_a_page_can_be_printed(visitor):
    tab = visitor.go("losses/tversky.html")
    tab.emulate_media(media="print")
    assert tab.locator("header.top").is_hidden()
    assert tab.locator(".sliders").is_hidden()
    assert tab.locator("#overlap svg").first.is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_docstrings_and_imports_of_the_code_unfold(visitor):
    tab = visitor.go("losses/dice.html")
    line = tab.locator("tr.quiet").first
    assert line.is_hidden()
    tab.check(".show-quiet")
    assert line.is_visible()
