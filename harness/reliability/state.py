"""Tests that using, copying and saving a module does not change its results."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import torch

from twinloss.harness.reliability.everyday import everyday, fingerprint, step
from twinloss.harness.reliability.registry import Row, line


def _contents(module: torch.nn.Module) -> str:
    return repr(sorted((name, str(value)) for name, value in vars(module).items()))


@line("State")
def unchanged(quick: bool) -> Iterator[Row]:
    """Forward does not change a module; copies, pickles and moved modules compute the same."""
    for each in everyday():
        loss, arguments = each.module(), each.arguments(8)
        before = _contents(loss)
        expected = fingerprint(*step(loss, arguments))
        wrong = [] if _contents(loss) == before else ["forward changes the module"]
        saved = io.BytesIO()
        torch.save(loss, saved)
        saved.seek(0)
        again = each.module()
        again.load_state_dict(loss.state_dict())
        others = {
            "a second call": loss,
            "deepcopy": copy.deepcopy(loss),
            "pickle": pickle.loads(pickle.dumps(loss)),
            "torch.save": torch.load(saved, weights_only=False),
            "state_dict": again,
            ".to(cpu)": copy.deepcopy(loss).to("cpu"),
            ".half()": copy.deepcopy(loss).half(),
            ".double()": copy.deepcopy(loss).double(),
            ".train().eval()": copy.deepcopy(loss).train().eval(),
        }
        wrong += [name for name, other in others.items() if fingerprint(*step(other, arguments)) != expected]
        if list(loss.parameters()) or loss.state_dict():
            wrong.append("it has parameters or buffers")
        value, gradient = step(copy.deepcopy(loss).half(), each.arguments(8, torch.float64))
        if {value.dtype, gradient.dtype} != {torch.float64}:
            wrong.append("float64 does not stay float64")
        told = f"bitwise the same after {', '.join(others)}; no buffers; float64 stays float64"
        yield Row("common operations on modules", told if not wrong else "; ".join(wrong), not wrong, each.name)
