"""The notice in the terminal that kernels are being compiled."""

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core import config

from twinloss.fast.kernels.cpu.compiled import compiler, notice


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setattr(notice, "sys", SimpleNamespace(stderr=made))  # pytest replaces sys.stderr itself
    monkeypatch.setattr(notice, "_given", False)
    monkeypatch.setattr(notice, "_PATIENCE", 0.01)
    monkeypatch.delenv(notice.QUIET, raising=False)
    return made


def wait():
    with notice.announced():
        time.sleep(0.2)


def test_compilation_that_takes_long_is_announced_once(terminal):
    wait()
    wait()
    assert terminal.getvalue().startswith("compiling twinloss kernels, once per machine")
    assert terminal.getvalue().count("\n") == 1


def test_compilation_that_takes_no_time_is_not_announced(terminal, monkeypatch):
    monkeypatch.setattr(notice, "_PATIENCE", 0.2)
    with notice.announced():
        pass
    time.sleep(0.4)
    assert terminal.getvalue() == ""


def test_variable_turns_the_notice_off(terminal, monkeypatch):
    monkeypatch.setenv(notice.QUIET, "1")
    wait()
    assert terminal.getvalue() == ""


def test_log_has_no_notice(terminal, monkeypatch):
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    wait()
    assert terminal.getvalue() == ""


def test_kernel_is_announced_when_it_is_compiled(terminal, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    assert compiler.kernel(lambda x: x.size)(np.zeros(3)) == 3
    assert "compiling" in terminal.getvalue()
