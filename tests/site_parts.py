"""Helpers of the tests of the site: a small brain, a small run, and a parser of HTML pages."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from twinloss.harness.commands.verify import Verification
from twinloss.harness.data.brain import Brain
from twinloss.harness.hunting.hunt import Counterexample, Hunt
from twinloss.harness.judging.judgement import Finding
from twinloss.harness.losses.catalogue import find

SHAPE = (24, 20, 12)
VOID = {"meta", "link", "img", "input", "br", "hr"}


def small_brain():
    """Return a brain of a few voxels, in the form in which `load_brain` returns the whole brain."""
    t1 = gaussian_filter(np.random.default_rng(0).random(SHAPE), 2)
    t1 = ((t1 - t1.min()) / np.ptp(t1)).astype(np.float32)
    labels = np.digitize(t1, [0.25, 0.5, 0.75]).astype(np.uint8)
    soft = np.stack([(labels == c) for c in range(4)]).astype(np.float32)
    logits = np.stack([-20 * (t1 - c / 4) ** 2 for c in range(4)])
    mask = labels > 0
    brain = Brain(t1, labels[None, None], soft[None], mask[None, None])
    vars(brain)["logits"] = logits[None]  # replaces the logits of the Gaussian mixture
    return brain


def small_run():
    """Return a verification of three losses: one passes, one fails, one was interrupted before its first case."""
    seen = Verification(7, {"losses": ["dice", "focal"], "dtypes": ["float32"], "examples": 5, "real": False})
    for name, ratio, verdict in (("dice", 0.2, "pass"), ("focal", 40.0, "fail")):
        row = Hunt(find(name), "float32", cases=3, seed=7)
        for part in ("value", "gradient"):
            finding = Finding(part, verdict, ratio, 1e-7, 1e-8, (0,))
            row.worst[part] = finding
            row.errors[part, 0.5] += 2
            row.errors[part, 1.0] += 1
        if verdict == "fail":
            row.counterexample = Counterexample("value", "value: off by 1e-7 <here>", "print('a script')")
        seen.work.rows.append(row)
    seen.work.rows.append(Hunt(find("tversky"), "float32", interrupted=True, seed=7))
    return seen


class Page(HTMLParser):
    """A parsed page; each element has its tag, its attributes and the text within."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.elements, self.open = path, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, tag, **attributes):
        """Return the elements with a tag and some attributes."""
        return [
            each for each in self.elements
            if each["tag"] == tag and all(each.get(name) == value for name, value in attributes.items())
        ]  # fmt: skip

    @property
    def ids(self):
        """The ids of the elements, which links can point to."""
        return [each["id"] for each in self.elements if "id" in each]
