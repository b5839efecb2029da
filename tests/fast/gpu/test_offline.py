"""The kernels compile for GPUs that are not there, and their variables fit into registers."""

import json
import os
import subprocess
import sys

import pytest

# Statements that launch the kernels of each kind of statistic, with torch and the losses in scope. Each kind takes a
# process, whose imports take seconds.
CASES = {
    "fields": """
for reduction in ("mean", "none"):
    BendingEnergyLoss(reduction)(random(1, 3, 32, 48, 64)).sum().backward()
    DiffusionLoss(reduction=reduction)(random(1, 3, 32, 48, 64)).sum().backward()
""",
    "segmentation, softmax": """
labels = torch.zeros(2, 1, 32, 32, 32, dtype=torch.uint8)
DiceCELoss(softmax=True, to_onehot_y=True)(random(2, 4, 32, 32, 32), labels).backward()
DiceLoss(softmax=True, to_onehot_y=True)(random(2, 4, 32, 32, 32, dtype=torch.bfloat16), labels).backward()
DiceCELoss(softmax=True, to_onehot_y=True)(random(2, 14, 32, 32, 32), labels).backward()
""",
    "segmentation, others": """
labels = torch.zeros(2, 1, 32, 32, 32, dtype=torch.uint8)
GeneralizedDiceLoss(sigmoid=True, ignore_index=1)(random(2, 4, 32, 32, 32), random(2, 4, 32, 32, 32)).backward()
GeneralizedWassersteinDiceLoss([[0.0, 1.0], [1.0, 0.0]])(random(2, 2, 32, 32, 32), labels.long()).backward()
MaskedDiceLoss(softmax=True)(random(2, 4, 32, 32, 32), random(2, 4, 32, 32, 32), random(2, 1, 32, 32, 32)).backward()
FocalLoss(to_onehot_y=True)(random(2, 40, 32, 32, 32), labels).backward()
""",
    "images": """
for size, length in ((3, 48), (9, 48), (9, 104)):
    images = random(1, 1, length, length, length), torch.rand(1, 1, length, length, length)
    LNCC(kernel_size=size)(*images).backward()
images = [random(1, 1, 48, 48, 48, dtype=torch.float64) for _ in range(2)]
LNCC(kernel_size=9, kernel_type="gaussian", reduction="none")(*images).sum().backward()
image = random(1, 1, 64, 64, 96)
MultiScaleLoss(torch.nn.MSELoss(), [1.0, 2.0, 8.0])(image.detach(), image).backward()
GlobalMutualInformationLoss()(random(1, 1, 64, 64, 64), random(1, 1, 64, 64, 64)).backward()
GlobalMutualInformationLoss(kernel_type="b-spline")(*random(2, 1, 64, 64, 64)).backward()
""",
}

# Spilled registers cost much more time than those that are used; a thread has up to 255, or 512 on AMD's GPU.
MOST_SPILLS, MOST_REGISTERS = 0, {"sm_80": 255, "sm_90": 255, "gfx942": 512}
# A single program that computes a few numbers may spill a little, around its divisions in float64.
MORE_SPILLS = {"compound": 16}


@pytest.mark.parametrize("kind", CASES)
def test_kernels_compile_for_each_target_without_spills(kind):
    pytest.importorskip("triton")
    # Triton reads this variable when it is imported: with it, its interpreter would leave nothing to compile.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, kind]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert found
    wrong = [
        each
        for each in found
        if each["spills"] > MORE_SPILLS.get(each["kernel"], MOST_SPILLS)
        or each["registers"] > MOST_REGISTERS[each["target"]]
    ]
    assert wrong == []


def _compile(kind):
    """Print the resources that the kernels of one kind of statistic take on each target."""
    import torch

    from twinloss import fast
    from twinloss.fast.kernels import gpu_kernels_on_cpu
    from twinloss.fast.kernels.gpu.launch import recorded
    from twinloss.harness.bench.offline import TARGETS, compiled

    def random(*shape, dtype=torch.float32):
        return torch.rand(*shape, dtype=dtype).requires_grad_()

    with gpu_kernels_on_cpu(), recorded() as launches:
        names = {**vars(fast), "LNCC": fast.LocalNormalizedCrossCorrelationLoss}
        exec(CASES[kind], {**names, "torch": torch, "random": random})
    for launch in launches:
        for target in TARGETS:
            resources = compiled(launch, target)._asdict()
            print(json.dumps({"kernel": launch.kernel.__name__, "target": target, **resources}))


if __name__ == "__main__":
    _compile(sys.argv[1])
