"""Start-up time of a process: imports, first calls and the cache on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import twinloss
from twinloss.harness.reliability.everyday import everyday
from twinloss.harness.reliability.registry import Row, line

IMPORT = """
import time, torch
start = time.perf_counter()
import twinloss.fast
print(time.perf_counter() - start)
"""
FIRST_CALL = """
import time
from twinloss.harness.reliability.everyday import everyday
each = next(each for each in everyday() if each.name == {name!r})
loss, (x, *rest) = each.module(), each.arguments(8)
x.requires_grad_()
start = time.perf_counter()
value = loss(x, *rest)
between = time.perf_counter()
value.backward()
print(between - start, time.perf_counter() - start, float(value.detach()))
"""
QUICK = ("bending_energy",)


def run(code: str, **environment: str) -> list[float]:
    """Run code in a fresh process and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [float(number) for number in done.stdout.split()]


@line("Cold start")
def imports(quick: bool) -> Iterator[Row]:
    """Import time of twinloss.fast in addition to that of torch."""
    seconds = min(run(IMPORT)[0] for _ in range(3))
    yield Row("import twinloss.fast after import torch", f"{seconds:.2f} s", seconds < 0.3)


@line("Cold start")
def first_calls(quick: bool) -> Iterator[Row]:
    """First call of each loss with an empty cache, and in a later process."""
    for each in everyday():
        if quick and each.name not in QUICK:
            continue
        code = FIRST_CALL.format(name=each.name)
        # The minimum of several runs, as other load only adds time. Compiling takes long, so it runs only twice.
        with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as cache:
            first = [run(code, NUMBA_CACHE_DIR=folder) for folder in (once, cache)]
            later = [run(code, NUMBA_CACHE_DIR=cache) for _ in range(3)]
        forward, both, value = min(first)
        warm = min(seconds for seconds, _, _ in later)
        yield Row(
            "first call with an empty cache (minimum of two), and from the cache (minimum of three)",
            f"{forward:.1f} s, with backward {both:.1f} s; from the cache {warm:.2f} s",
            forward < 10 and warm < 0.5 and all(again == value for _, _, again in (*first, *later)),
            each.name,
        )


@line("Cold start")
def two_at_once(quick: bool) -> Iterator[Row]:
    """Two processes that compile into the same cache at the same time."""
    code = FIRST_CALL.format(name=QUICK[0])
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        both = [
            subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        said = [process.communicate()[0].split() for process in both]
        good = all(process.returncode == 0 for process in both) and said[0][2] == said[1][2]
        good &= run(code, NUMBA_CACHE_DIR=cache)[2] == float(said[0][2])
    yield Row("two processes compile into one cache", "both are correct; a third reads it" if good else "fails", good)


@line("Cold start")
def read_only(quick: bool) -> Iterator[Row]:
    """A read-only installation, with and without a writable home directory."""
    code = FIRST_CALL.format(name=QUICK[0])
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder, "site", "twinloss")
        shutil.copytree(Path(twinloss.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
        # A file in the place of the cache folder prevents its creation, even for root, who ignores file permissions.
        (copied / "fast" / "kernels" / "cpu" / "compiled" / "__pycache__").touch()
        home = Path(folder, "home")
        home.mkdir()
        values = []
        for title, where, runs in (("with", home, 2), ("without", Path("/proc/none"), 1)):
            clean: Mapping[str, str] = {"HOME": str(where), "XDG_CACHE_HOME": str(where / ".cache")}
            clean = {**clean, "PYTHONPATH": str(copied.parent), "PYTHONDONTWRITEBYTECODE": "1"}
            made = [run(code, **clean) for _ in range(runs)]
            values += [value for *_, value in made]
            kept = runs > 1
            good = len({*values}) == 1 and (not kept or made[1][0] < made[0][0] / 2)
            told = "the second process reads the cache there" if kept else "each process compiles, with a warning"
            yield Row(f"read-only installation, {title} a writable home directory", told if good else "fails", good)
