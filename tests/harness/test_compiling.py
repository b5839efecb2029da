"""What is said while kernels are compiled, and that two processes do not compile the same one at once."""

import subprocess
import sys

import numpy as np
from numba import njit

from twinloss.harness.hunting import compiling, parallel
from twinloss.harness.hunting.jobs import Job
from twinloss.harness.losses.catalogue import find

HERE = __name__.removesuffix("compiling")


@njit
def twice(x):
    return x + x


@njit
def four_times(x):
    return twice(twice(x))


def test_kernels_are_named_once_and_without_what_they_are_made_of(monkeypatch):
    monkeypatch.setattr(compiling, "KERNELS", HERE)
    told = []
    with compiling.reported(parallel._compilation_reporter(lambda what, cases: told.append(what))):
        for numbers in (np.ones(2), np.ones(3), np.ones(2, np.int16)):
            four_times(numbers)
    assert told == [
        "compiling kernel 1: compiling.four_times (float64)",
        "compiling kernel 2: compiling.four_times (int16)",
    ]


PROCESS = """
import multiprocessing
from numba import njit
from twinloss.harness.hunting import compiling, parallel

compiling.KERNELS = "__"  # as if what stands in __main__ were a kernel
names = multiprocessing.get_context("spawn").SimpleQueue()
parallel.prepare(1, names)
njit(lambda x: x + x)(1.0)
print(names.get(), names.empty())
"""


def test_a_process_beside_others_hands_over_the_names():
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=False)
    assert done.stdout == "main__.<lambda> True\n", done.stderr


def test_functions_of_others_are_not_named():
    told = []
    with compiling.reported(told.append):
        njit(lambda x: x + 1)(1)
    assert told == []


def test_the_next_job_is_of_a_type_that_no_other_is_at():
    f32, f16, f64, more = (
        Job(find("dice"), (dtype,), "generated", 1, 0) for dtype in ("float32", "float16", "float64", "float32")
    )
    real = Job(find("dice"), ("float32", "float64"), "real", 1, 0)
    waiting = [f32, f16, f64, more, real]
    assert [parallel._next(waiting, []), parallel._next(waiting, [f32])] == [f32, f64]
    assert [parallel._next(waiting, [f64]), parallel._next(waiting, [f64]), parallel._next(waiting, [f64])] == [
        f16,
        more,
        real,
    ]


COUNT = """
from twinloss.harness.hunting import compiling, warmup
from twinloss.harness.losses.catalogue import TWINS
import sys

for twin in TWINS:
    warmup.warm_up(twin, "float32")
modules = [each for name, each in sys.modules.items() if name.startswith(compiling.KERNELS)]
kernels = {each for module in modules for each in vars(module).values() if hasattr(each, "signatures")}
own = [each for each in kernels if each.py_func.__code__.co_freevars == ("sources",)]
print(sum(len(each.signatures) for each in own), warmup.KERNELS)
"""


def test_warmup_tells_roughly_how_many_kernels_there_are():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    kernels, told = map(int, done.stdout.split())
    assert abs(kernels - told) <= 0.1 * told
