"""Settings that all tests share."""

import fcntl
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU, the tests run the kernels for GPUs in Triton's interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# No example has a deadline, because the first call of a kernel compiles it.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return the folder of a site that is built from a small run, a small brain and the reports of the repository.

    The workers of pytest-xdist share it: the first worker builds it, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "built").exists():
            _build(home)
            (home / "built").touch()
    return home / "site"


def _build(home):
    from site_parts import small_brain, small_run

    from twinloss.harness.commands import report
    from twinloss.harness.data import brain, warp
    from twinloss.harness.site.build import SitePlan, build

    report.write(small_run(), home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brain, "load_brain", small_brain)
        patch.setattr(warp, "load_brain", small_brain)
        warp.load_warped.cache_clear()
        build(SitePlan(home / "site", home, Path(__file__).parent.parent / "reports"))
    warp.load_warped.cache_clear()
