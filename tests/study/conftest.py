"""Made-up studies, whole and cut off, with their reports."""

import re

import pytest
from known_effects import made_up, undrawn

from study import report


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A lab with all its runs, and no report yet."""
    return made_up(tmp_path_factory.mktemp("whole"), "lab")


@pytest.fixture(scope="session")
def whole(made):
    """The same with its report. Its figures are drawn."""
    report.build(made)
    return made


@pytest.fixture
def unseen(monkeypatch):
    undrawn(monkeypatch)


@pytest.fixture(scope="session")
def cut_off(tmp_path_factory):
    """As after half its time: two pre-trainings, and no more. No report."""
    block = re.compile("pre-training|seed [12]: base|C1 C2 C3 C5 C6 C7: seed [12]")
    return made_up(tmp_path_factory.mktemp("cut"), "lab", lambda task: bool(block.match(task.block)))
