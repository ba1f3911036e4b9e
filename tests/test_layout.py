"""Which way imports go, and that what a reader is pointed to is there.   pytest -q tests/test_layout.py"""

import ast
import re
from pathlib import Path

import pytest

import study

ROOT = Path(__file__).resolve().parent.parent
METHOD = [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("kernels/*.py")]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*/README.md"), *ROOT.glob("*/README.md")]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, also within functions: "study.plan" of `from study import plan`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", METHOD, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_method_does_not_know_the_study(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("study", "tools", "bench", "tests")}


def test_imports_in_the_study_go_one_way():
    """Up its map, which lists every module once."""
    order = re.findall(r"^(?:[a-z]+|) {2,}(\w+) {2,}\S", study.__doc__, re.M)
    assert sorted(order) == sorted(path.stem for path in ROOT.glob("study/*.py") if path.stem != "__init__")
    for place, name in enumerate(order):
        later = {f"study.{other}" for other in order[place:]}
        assert not imported(ROOT / "study" / f"{name}.py") & later, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    lost = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not lost


def test_every_page_is_linked_from_the_front():
    linked = re.findall(r"\]\((?:docs/)([^)#/]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in ROOT.glob("docs/*.md")} <= set(linked)
