"""Functions of Liger-Kernel as pairs: our references, and the interpreter that runs the kernels."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from twinloss.harness.commands.audit import LibraryError
from twinloss.harness.commands.audit_functions import Checked, as_markdown, audit_functions, pairs_of
from twinloss.harness.commands.pairs_of_liger_kernel import NOT_RUN, NOTES, PAIRS
from twinloss.harness.model import interpreter

REFERENCES = {pair.name: pair.reference for pair in PAIRS}
LABELS = torch.tensor([2, -100, 0, 1])
KEPT = LABELS != -100
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles the kernels where there is a GPU")


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, W, V = numbers(4, 3), numbers(4, 3, seed=1), numbers(3, 5, seed=2), numbers(3, 5, seed=3)
H, G, B = numbers(4, 5, seed=4), numbers(4, 5, seed=5), numbers(3, seed=6)
P, Q = X.softmax(1), Y.softmax(1)


def capped(x):
    return 3 * (x / 3).tanh()


def mean_of_kept(rows):
    return rows[KEPT].sum(1).mean()


def divergence(p, q, beta):
    middle = beta * p + (1 - beta) * q
    return mean_of_kept(beta * p * (p / middle).log() + (1 - beta) * q * (q / middle).log())


def rms(x, w=1.0, eps=0.5):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * w


def rotated(x, angle):
    turned = torch.complex(x[..., 0, :], x[..., 1, :]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.stack([turned.real, turned.imag], -2)


def simplex_projection(x):
    """Project on the simplex by bisection."""
    low, high = x.max(-1, keepdim=True)[0] - 1, x.max(-1, keepdim=True)[0]
    for _ in range(60):
        middle = (low + high) / 2
        above = (x - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (x - low).clamp(min=0)


Z = functional.cross_entropy(capped(X), LABELS) + 0.25 * capped(X).logsumexp(1)[KEPT].square().mean()
WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
STREAMS, MIX = numbers(2, 4, 3, seed=7), numbers(2, 4, 4, seed=8)
ANGLES, PAIRED, OTHER = numbers(2, 3, 5, seed=9), numbers(2, 4, 3, 2, 5, seed=10), numbers(2, 1, 3, 2, 5, seed=11)
BLOCKS = numbers(3, 2, 4, 5, seed=12)
IMAGES = numbers(2, 4, 3, seed=13)

# For each pair: the inputs and options of our reference, and torch's answer.
CASES = {
    "cross_entropy": ((X, LABELS), {"lse_square_scale": 0.25, "softcap": 3.0, "reduction": "mean"}, Z),
    "cross_entropy_of_contiguous": (
        (X, LABELS), {"reduction": "none"}, functional.cross_entropy(X, LABELS, reduction="none")),
    "weighted_cross_entropy": (
        (X, WEIGHTS, LABELS), {"label_smoothing": 0.25},
        functional.cross_entropy(X, LABELS, WEIGHTS, label_smoothing=0.25)),
    "fused_linear_cross_entropy": (
        (H, W, B, LABELS), {"label_smoothing": 0.25, "reduction": "sum"},
        functional.cross_entropy(functional.linear(H, W, B), LABELS, label_smoothing=0.25, reduction="sum")),
    "kl_div": ((X, Q), {"reduction": "batchmean"}, functional.kl_div(X, Q, reduction="batchmean")),
    "fused_linear_kl_div": (
        (H, W, Q, LABELS), {"temperature": 2.0},
        mean_of_kept(functional.kl_div((H @ W.T / 2).log_softmax(1), Q, reduction="none"))),
    "jsd": ((P.log(), Q.log(), LABELS), {"beta": 0.125}, divergence(Q, P, 0.125)),
    "fused_linear_jsd": (
        (H, W, G, V, LABELS), {"temperature": 2.0},
        divergence((G @ V.T / 2).softmax(1), (H @ W.T / 2).softmax(1), 0.5)),
    "tvd": ((P, Q, LABELS), {"reduction": "batchmean"}, mean_of_kept((P - Q).abs() / 2)),
    "layer_norm": ((H, W[0], V[0]), {"eps": 0.5}, functional.layer_norm(H, (5,), W[0], V[0], 0.5)),
    "group_norm": (
        (IMAGES, H[:, 0], G[:, 0]), {"groups": 2, "eps": 0.5},
        functional.group_norm(IMAGES, 2, H[:, 0], G[:, 0], 0.5)),
    "rms_norm": ((H, W[0]), {"eps": 0.5, "offset": 1.0}, rms(H, 1 + W[0])),
    "modulated_rms_norm": ((H, W[0], G, H), {"eps": 0.5}, rms(H, W[0]) * (1 + G) + H),
    "fused_add_rms_norm": ((H, G, W[0]), {"eps": 0.5}, (rms(H + G, W[0]), H + G)),
    "poly_norm": (
        (H, B, B[0]), {"eps": 0.5}, B[0] * rms(H**3) + B[1] * rms(H**2) + B[2] * rms(H) + B[0]),
    "softmax": ((X,), {}, X.softmax(-1)),
    "sparsemax": ((X,), {}, simplex_projection(X)),
    "geglu": ((X, Y), {}, functional.gelu(X, approximate="tanh") * Y),
    "swiglu": ((X, Y), {}, functional.silu(X) * Y),
    "relu_squared": ((X,), {}, functional.relu(X).square()),
    "rope": (
        (PAIRED, OTHER, ANGLES.cos(), ANGLES.sin()), {}, (rotated(PAIRED, ANGLES), rotated(OTHER, ANGLES))),
    "attn_res": (
        (BLOCKS, W[0], V[0]), {"eps": 0.5},
        torch.einsum("nbt,nbtd->btd", (rms(BLOCKS, V[0]) @ W[0]).softmax(0), BLOCKS)),
    "mhc_pre": ((STREAMS, MIX[:, 0]), {}, torch.einsum("bi,bic->bc", MIX[:, 0], STREAMS)),
    "mhc_post_res": (
        (STREAMS, STREAMS[:, 0], MIX[:, 1], MIX), {},
        torch.einsum("boi,bic->boc", MIX, STREAMS) + torch.einsum("bo,bc->boc", MIX[:, 1], STREAMS[:, 0])),
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_each_reference_agrees_with_a_formula_in_torch(name):
    inputs, options, expected = CASES.get(name) or CASES[name.removesuffix("_of_contiguous")]
    made = REFERENCES[name](*(each.numpy() for each in inputs), **options)
    several = isinstance(expected, tuple)
    for got, wanted in zip(made if several else [made], expected if several else [expected], strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("beta", "order"), [(0.0, (Q, P)), (1.0, (P, Q))])
def test_the_ends_of_beta_are_the_two_divergences(beta, order):
    p, q = order
    made = REFERENCES["jsd"](P.log().numpy(), Q.log().numpy(), LABELS.numpy(), beta=beta)
    np.testing.assert_allclose(made, mean_of_kept(p * (p / q).log()))


def test_each_note_is_about_a_pair_and_no_pair_is_said_not_to_run():
    assert set(NOTES) <= set(REFERENCES)
    assert not set(NOT_RUN) & set(REFERENCES)


@no_gpu
def test_the_interpreter_passes_numbers_and_calls_libdevice_as_a_launch_does():
    triton = pytest.importorskip("triton")
    from triton.runtime import interpreter as of_triton

    before = of_triton._implicit_cvt
    with interpreter.completed():
        import triton.language as tl
        from triton.language.extra.libdevice import rsqrt, tanh

        @triton.jit
        def kernel(x, out, eps):
            tl.store(out, rsqrt(tl.load(x) + eps.to(tl.float32)))
            tl.store(out + 1, tanh(tl.load(x)))
            tl.store(out + 2, eps * 1e9)

        kernel.fn.__globals__.update(tl=tl, rsqrt=rsqrt, tanh=tanh)
        out = torch.zeros(3)
        kernel[(1,)](torch.tensor([3.0]), out, 1.0 + 1e-9)
    torch.testing.assert_close(out, torch.tensor([0.5, float(np.tanh(3.0)), 1e9]))
    assert of_triton._implicit_cvt is before


def test_the_package_to_install_is_named(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles the kernels where there is a GPU")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers.functional", raising=False)
    with pytest.raises(LibraryError, match="pip install liger-kernel"):
        pairs_of("liger_kernel")


@no_gpu
def test_kernels_are_audited_in_the_interpreter():
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel", reason="pip install liger-kernel")
    rows = audit_functions("liger_kernel", ["relu_squared"])
    assert [(row.dtype, row.verdict) for row in rows] == [("float32", "agrees")]
    page = as_markdown("liger_kernel", [*rows, Checked("cross_entropy", "float32", "differs", "gradient x", "x")], 0)
    assert NOTES["cross_entropy"] in page
    assert "Triton's interpreter ran the kernels" in page
    assert "**dyt** was not run: " in page
