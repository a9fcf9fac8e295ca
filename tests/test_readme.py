"""Every Python snippet of the READMEs and of docs/ runs, and both READMEs say the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{i}")
    for page in PAGES
    for i, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet, tmp_path):
    file = tmp_path / "snippet.py"  # convert reads the source of the classes it meets
    file.write_text(snippet)
    exec(compile(snippet, str(file), "exec"), {"__name__": "__main__"})


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
