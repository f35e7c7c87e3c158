"""What the documents name exists: files, headings, functions, and a page for each figure."""

import operator
import re
from pathlib import Path

import pytest

import adamflow

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = sorted(path for folder in ("adamflow", "bench", "examples", "scripts") for path in (ROOT / folder).rglob("*.py"))
FIGURES = sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
# The target of a Markdown link or image, and that of an HTML image, as in the README's gallery.
LINK = re.compile(r'\]\(([^()\s]+)\)|src="([^"]+)"')
CODE_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# Names of the package in prose and in code, such as `af.analysis.two_cycle`.
NAME = re.compile(r"\baf((?:\.[A-Za-z_]\w*)+)")
MENTION = re.compile(r"docs/[\w/-]+\.(?:md|py)")


def anchors(document: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """The relative links of a document whose file or heading is missing."""
    broken = []
    for match in LINK.finditer(CODE_BLOCK.sub("", document.read_text())):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_identity_relative_links_exist(document):
    assert broken_links(document) == []


def test_failure_broken_links_are_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# A title\n[a](missing.md) [b](#a-title) [c](#no-title) <img src="no.png"> [d](https://x.org)\n')
    assert broken_links(page) == ["missing.md", "#no-title", "no.png"]


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],  # which names what was renamed
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_identity_names_of_the_package_exist(document):
    for name in sorted(set(NAME.findall(document.read_text()))):
        operator.attrgetter(name.lstrip("."))(adamflow)  # an AttributeError tells the name


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_identity_documents_named_in_code_exist(path):
    missing = [name for name in MENTION.findall(path.read_text()) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("figure", FIGURES)
def test_identity_each_figure_has_a_page_and_a_line_in_the_readme(figure):
    page = ROOT / "docs" / "figures" / f"{figure}.md"
    text = page.read_text()
    for part in (f"figures/{figure}.png", f"figures/{figure}.json", f"scripts/{figure}.py"):
        assert f"(../../{part})" in text
    readme = (ROOT / "README.md").read_text()
    assert f'src="figures/{figure}.png"' in readme
    assert f"(docs/figures/{figure}.md)" in readme
    assert f"({figure}.md)" in (page.parent / "README.md").read_text()
