"""Where and how the hunts of a pair run: on a device, in the interpreter, in processes, on a cluster, and compared."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pair_examples as examples
import pytest
import torch
from typer.testing import CliRunner

from twinloss.harness import PairError, check_pair
from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.judging.pair_call import tensors_of
from twinloss.harness.model import device
from twinloss.harness.model.operand import PAIR_LAYOUTS, Operand
from twinloss.harness.model.twin import Case

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

TRITON = """
import torch
import triton
import triton.language as tl

from twinloss.harness import Pair, arrays


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, at < n, 0), at < n)


def doubled(x):
    x, out = x.contiguous(), torch.zeros_like(x, memory_format=torch.contiguous_format)
    programs = {programs}
    if programs:
        kernel[(programs,)](x, out, x.numel(), 4)
    return out


PAIR = Pair("doubled", fast=doubled, reference=lambda x: 2 * x, inputs={{"x": arrays("N M")}}, takes="torch")
"""


@pytest.fixture(autouse=True)
def cpu_afterwards():
    yield
    device.use("cpu")


def twinloss(*line):
    done = CliRunner().invoke(with_all_commands(), list(map(str, line)))
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


@no_gpu
@pytest.mark.parametrize(("programs", "code"), [("triton.cdiv(x.numel(), 4)", 0), ("x.numel() // 4", 1)])
def test_a_triton_kernel_runs_in_the_interpreter(tmp_path, programs, code):
    pytest.importorskip("triton")
    file = tmp_path / "kernels.py"
    file.write_text(TRITON.format(programs=programs))
    line = ["check", "--pair", f"{file}:PAIR", "--device", "interpreter", "--examples", 2, "--seed", 0]
    types = ["--dtype", "float32", "--dtype", "float64", "--jobs", 2] if not code else ["--dtype", "float32"]
    found, output = twinloss(*line, *types, "--report", tmp_path / "out")
    assert found == code, output
    if code:
        script = tmp_path / "out" / "doubled_float32_generated.py"
        run = subprocess.run([sys.executable, script], cwd="/", capture_output=True, text=True, check=False)
        assert run.returncode == 1, run.stdout + run.stderr
        assert "value: off by" in run.stdout


@no_gpu
def test_a_missing_gpu_is_named_before_the_hunt(tmp_path):
    pair = f"{examples.__file__}:NORM"
    code, output = twinloss("check", "--pair", pair, "--device", "cuda", "--report", tmp_path)
    assert code == 2
    assert "--device cuda needs a GPU" in output
    with pytest.raises(device.DeviceError, match="needs a GPU"):
        check_pair(pair, device="cuda")
    with pytest.raises(PairError, match="device='cuda:1' cannot be used here"):
        check_pair(replace(examples.NORM, device="cuda:1"))


def test_numpy_kernels_are_on_no_other_device():
    with pytest.raises(PairError, match="are not on meta"):
        check_pair(replace(examples.STENCIL, device="meta"), dtypes=["float32"])


@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_a_layout_is_made_on_the_device(layout):
    """A copy to another device would make it contiguous."""
    shape = (2, 3, 4, 5, 6) if layout == "channels_last_3d" else (2, 3, 4, 5)
    case = Case({"x": Operand(np.ones(shape), "float32", layout)}, tested="float32")
    here, there = (tensors_of(replace(examples.NORM, device=where), case)["x"] for where in ("cpu", "meta"))
    assert there.device.type == "meta"
    assert there.stride() == here.stride()
    assert there.storage_offset() == here.storage_offset()


@pytest.mark.filterwarnings("ignore")  # of what Dask imports
def test_processes_and_a_cluster_hunt_as_one_process_does():
    distributed = pytest.importorskip("distributed")
    place = f"{examples.__file__}:HISTOGRAM"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        made = [
            check_pair(place, dtypes=["float32", "float64"], examples=5, **how)
            for how in ({}, {"processes": 2}, {"cluster": cluster.scheduler_address})
        ]
    rows = [[(row.dtype, row.cases, row.laws, row.worst) for row in each.rows] for each in made]
    assert rows[0] == rows[1] == rows[2]


def test_a_saved_report_is_compared_with_a_later_one(tmp_path):
    file = tmp_path / "my_pairs.py"
    file.write_text(
        f"import sys\nfrom dataclasses import replace\n\nsys.path.insert(0, {examples.__file__.rpartition('/')[0]!r})\n"
        "import pair_examples as p\n\nOLD = SAME = p.HISTOGRAM\n"
        "NEW = replace(OLD, fast=p.histogram_without_upper_end)\n"
    )
    old, same, new = (tmp_path / f"{name}.json" for name in ("OLD", "SAME", "NEW"))
    for saved in (old, same, new):
        line = ["check", "--pair", f"{file}:{saved.stem}", "--dtype", "float32", "--examples", 5, "--seed", 0]
        code, output = twinloss(*line, "--report", tmp_path / "out", "--save", saved)
        assert code == (saved == new), output
    assert json.loads(old.read_text())["rows"][0]["loss"] == "histogram"
    assert twinloss("compare", old, same)[0] == 0
    code, output = twinloss("compare", old, new)
    assert code == 1
    assert "fail" in output
