"""The device under test: a hunt runs on a GPU, or runs the kernels for GPUs in Triton's interpreter."""

import subprocess
import sys

import pytest
import torch

from twinloss.harness.cli.main import with_all_commands
from twinloss.harness.drawing.hypothesis_seed import drawn
from twinloss.harness.hunting.snippet import snippet
from twinloss.harness.judging.trial import examine
from twinloss.harness.model import device
from twinloss.harness.zoo import kills, zoo

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def cpu_afterwards():
    yield
    device.use("cpu")


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(device.DeviceError, match="one of cpu, cuda, interpreter, got 'tpu'"):
        device.use("tpu")


@no_gpu
@pytest.mark.parametrize("command", [["verify", "dice"], ["check", "twinloss.fast:DiceLoss", "--as", "dice"]])
def test_a_missing_gpu_is_a_usage_error(command, tmp_path):
    from typer.testing import CliRunner

    done = CliRunner().invoke(with_all_commands(), [*command, "--device", "cuda", "--report", str(tmp_path)])
    assert done.exit_code == 2
    assert "--device cuda needs a GPU" in done.output


@no_gpu
def test_the_interpreter_runs_the_programs_of_a_launch_once_each_in_any_order():
    pytest.importorskip("triton")
    device.use("interpreter")
    from twinloss.harness.zoo import device_kernels

    x = torch.ones(50 * device_kernels.BLOCK)
    sums = {float(device_kernels.sum_in_a_race(x)) for _ in range(20)}
    assert len(sums) > 1
    assert float(device_kernels.sum_by_atomics(x)) == x.numel()


@no_gpu
@pytest.mark.parametrize("name", ["tail without mask", "first program starts", "sum by atomics"])
def test_a_kernel_that_is_wrong_only_on_a_gpu_is_killed(name):
    pytest.importorskip("triton")
    assert kills.kills(next(mutant for mutant in zoo() if mutant.name == name)).at


@no_gpu
def test_a_counterexample_found_in_the_interpreter_is_shown_there_again(tmp_path):
    pytest.importorskip("triton")
    device.use("interpreter")
    twin = next(mutant for mutant in zoo() if mutant.name == "tail without mask").twin()
    cases = drawn(twin, "float32", twin.defaults(), None, 20, start=0)
    failed = next(trial for trial in (examine(twin, case) for case in cases) if trial.kind == "value")
    script = tmp_path / "counterexample.py"
    script.write_text(snippet(twin, failed))
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (shown.returncode, "value: DIFFERS" in shown.stdout) == (1, True), shown.stderr
