"""Every way to install provides the import name `twinloss` and nothing else."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import twinloss

ROOT = Path(__file__).parent.parent
PARTS = ["reference", "fast", "compat", "harness"]


def run(*command, cwd):
    """Run a command that sees neither the repository nor PYTHONPATH, and return its standard output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source, what, into):
    """Build with the installed backend, so that no network is needed."""
    run(sys.executable, "-m", "build", "--no-isolation", what, "-o", into, source, cwd=into)


def files(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def contents(wheel):
    """Return the name and the checksum of each file."""
    return {each.filename: each.CRC for each in zipfile.ZipFile(wheel).infolist()}


def metadata(wheel):
    """Return the metadata of a wheel, as pip reads it."""
    (name,) = [name for name in files(wheel) if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build the wheel and the sdist of the working tree, and return their folder."""
    into = tmp_path_factory.mktemp("dist")
    build(ROOT, "--wheel", into)
    build(ROOT, "--sdist", into)
    return into


@pytest.fixture(scope="module")
def wheel(dist):
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Create an environment that has only the wheel."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    return home


@pytest.fixture(scope="module")
def with_dependencies(environment):
    """Add the dependencies of the running interpreter to that environment, after the wheel.

    Python ignores .pth files in a folder that is itself named by a .pth file. Therefore an editable install of twinloss
    in that folder stays hidden.
    """
    purelib = sysconfig.get_path("purelib", "venv", {"base": str(environment)})
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_wheel_holds_twinloss_alone(wheel):
    top = {name.split("/")[0] for name in files(wheel)}
    assert top == {"twinloss", f"twinloss-{twinloss.__version__}.dist-info"}
    for part in PARTS:
        for file in ROOT.glob(f"{part}/**/*.*"):
            if "__pycache__" not in file.parts:
                assert f"twinloss/{file.relative_to(ROOT)}" in files(wheel)
    assert "twinloss/py.typed" in files(wheel)
    assert not [name for name in files(wheel) if "__pycache__" in name]


@pytest.mark.parametrize("links_are_files", [False, True])
def test_sdist_builds_the_same_wheel(dist, wheel, tmp_path, links_are_files):
    """A checkout without symbolic links, as on Windows, has text files in their place, which hold the target."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    for part in PARTS if links_are_files else ():
        (source / "src" / "twinloss" / part).write_text(f"../../{part}")
    build(source, "--wheel", tmp_path)
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def test_pip_installs_four_packages_with_the_losses(wheel):
    needed = [line for line in metadata(wheel).get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in needed} == {"numba", "numpy", "scipy", "torch"}


def test_readme_and_classifiers_name_the_admitted_versions(wheel):
    """pip installs twinloss on each Python of the classifiers, and the README names the same and the oldest torch."""
    told = metadata(wheel)
    oldest = re.fullmatch(r">=3\.(\d+)", told["Requires-Python"])[1]
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(told.get_all("Classifier")))
    assert [int(each) for each in named] == list(range(int(oldest), int(named[-1]) + 1))
    (torch,) = re.findall(r"^torch>=([\d.]+)", "\n".join(told.get_all("Requires-Dist")), re.MULTILINE)
    wanted = f"Python 3.{oldest} to 3.{named[-1]} and torch {torch} or newer"
    assert wanted in " ".join((ROOT / "README.md").read_text().split())


def test_wheel_in_an_empty_environment(environment, tmp_path):
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    installed = {path.name for path in site.iterdir() if path.suffix != ".pth"}
    assert installed == {"twinloss", f"twinloss-{twinloss.__version__}.dist-info"}
    version = f"twinloss {twinloss.__version__}\n"
    assert run(environment / "bin" / "twinloss", "--version", cwd=tmp_path) == version


def test_readme_example_from_the_wheel(with_dependencies, tmp_path):
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = f"import twinloss\nprint(twinloss.__file__)\n{example}"
    out = run(with_dependencies / "bin" / "python", "-c", script, cwd=tmp_path)
    where, values = out.splitlines()
    assert Path(where).is_relative_to(with_dependencies)
    fast, slow = map(float, values.split())
    assert fast == pytest.approx(slow, rel=1e-6)


def test_import_of_the_installed_package(tmp_path):
    """In this environment, usually an editable install, the parts can be imported only from `twinloss`."""
    script = f"""
import importlib, importlib.util, sys
import twinloss
assert not {{"numpy", "torch"}} & set(sys.modules), "import twinloss must stay light"
for part in {PARTS}:
    assert importlib.util.find_spec(f"twinloss.{{part}}").origin, part
    assert importlib.util.find_spec(part) is None, part
"""
    run(sys.executable, "-c", script, cwd=tmp_path)


def test_import_of_the_losses_adds_little_to_that_of_torch(tmp_path):
    """Numba takes a second to import, so that it waits for the first kernel. No time is measured: machines differ."""
    script = """
import sys, torch
before = set(sys.modules)
import twinloss.fast
added = set(sys.modules) - before
others = sorted(name for name in added if name.split(".")[0] not in ("twinloss", "torch"))
assert not others, others
assert len(added) < 80, len(added)
"""
    run(sys.executable, "-c", script, cwd=tmp_path)


def test_reference_does_not_import_torch(tmp_path):
    script = "import sys, twinloss.reference; assert 'torch' not in sys.modules"
    run(sys.executable, "-c", script, cwd=tmp_path)


def test_module_is_the_command(tmp_path):
    version = f"twinloss {twinloss.__version__}\n"
    assert run(sys.executable, "-m", "twinloss", "--version", cwd=tmp_path) == version


def test_command_without_the_harness_extra(tmp_path):
    """Python treats a module that is None in sys.modules as not installed."""
    script = """
import sys
sys.modules["typer"] = None
sys.argv = ["twinloss", "verify"]
try:
    from twinloss.__main__ import main
    main()
except SystemExit as exit:
    print(exit.code)
"""
    assert 'pip install "twinloss[harness]"' in run(sys.executable, "-c", script, cwd=tmp_path)
