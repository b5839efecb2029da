"""The examples run, train and write their picture."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "registration": ("matplotlib", "nilearn"),
    "monai_unet": ("matplotlib", "monai", "nilearn"),
    "lightning_module": ("lightning", "matplotlib"),
    "nnunet_trainer": ("matplotlib", "nilearn", "nnunetv2"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_example_decreases_its_loss_and_writes_its_picture(name, tmp_path):
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"the example needs {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", f"{name}.png"],
        cwd=tmp_path, env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.search(r"loss: (\S+) -> (\S+)", done.stdout).groups())
    assert after < before - 0.1
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_every_example_is_tested_and_short():
    scripts = list(EXAMPLES.glob("*.py"))
    assert {path.stem for path in scripts} == set(NEEDS)
    assert all(len(path.read_text().splitlines()) < 60 for path in scripts)
