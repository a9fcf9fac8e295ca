"""Every Python snippet of the READMEs and of docs/ runs, and both READMEs say the same."""

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import needs_native

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]


def page_with(snippets, page):
    """A page's snippets build on each other. TrainStep is native code; without it stock operators run."""
    native = re.compile(r"TrainStep|check_reproducible|\"pytorch_ext\.linear\.default\"")
    marks = needs_native if any(map(native.search, snippets)) else ()
    return pytest.param(snippets, id=page.name, marks=marks)


def is_installed(snippet):
    """Whether the libraries are there that a snippet imports beside torch's."""
    names = re.findall(r"^(?:import|from) (transformers|lightning|onnxruntime)\b", snippet, re.M)
    return all(importlib.util.find_spec(name) for name in names)


SNIPPETS = [page_with(re.findall(r"```python\n(.*?)```", page.read_text(), re.S), page) for page in PAGES]


@pytest.mark.parametrize("snippets", SNIPPETS)
def test_the_snippets_of_a_page_run_in_turn(snippets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for i, snippet in enumerate(snippets):
        file = tmp_path / f"snippet_{i}.py"  # convert reads the source of the classes it meets
        file.write_text(snippet)
        if is_installed(snippet):
            exec(compile(snippet, str(file), "exec"), namespace)


def figures(page):
    """Numbers and code: what a translation must not change."""
    text = page.read_text()
    return sorted(re.findall(r"`[^`\n]+`", text)), sorted(re.findall(r"\d+(?:\.\d+)?x", text))


def test_the_chinese_readme_says_the_same():
    english, chinese = (figures(ROOT / name) for name in ("README.md", "README.zh.md"))
    assert english == chinese


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
