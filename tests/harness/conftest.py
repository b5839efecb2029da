"""Settings of the tests of the harness."""

import pytest

from twinloss.harness.hunting import hunt


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """Examples of lost digits and of conventions need not be the simplest here: the search for it takes seconds."""
    monkeypatch.setattr(hunt, "SECONDS", 0.1)
    monkeypatch.setattr(hunt, "LONGER", 0.1)
