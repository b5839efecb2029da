"""Scripts that run as a user runs them, several in one process, because the import of torch takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

_EACH = """
import contextlib, io, json, runpy, sys, traceback

made = []
for path in sys.argv[1:]:
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            code = 1
            print(traceback.format_exc())
    made.append((code, said.getvalue()))
print(json.dumps(made))
"""


def run_scripts(*scripts: Path) -> list[tuple[int, str]]:
    """Run scripts one after the other, away from the repository, and return the exit code and the output of each."""
    tests = Path(__file__).parent
    path = [str(tests), str(tests / "harness"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-c", _EACH, *scripts], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]
