"""What the documents name exists: files, headings, functions, pages of figures; the site has every page and name."""

import importlib
import inspect
import operator
import re
from pathlib import Path

import pytest

import adamflow

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = sorted(path for folder in ("adamflow", "bench", "examples", "scripts") for path in (ROOT / folder).rglob("*.py"))
#: A figure may have a second picture, such as fig01_agreement.all.png.
PICTURES = sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
FIGURES = [name for name in PICTURES if "." not in name]
# The target of a Markdown link or image, and that of an HTML image, as in the README's gallery.
LINK = re.compile(r'\]\(([^()\s]+)\)|src="([^"]+)"')
CODE_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
# Names of the package in prose and in code, such as `af.analysis.two_cycle`.
NAME = re.compile(r"\baf((?:\.[A-Za-z_]\w*)+)")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: A block of the site's reference: a module, and names of it, or none for all of them.
REFERENCE = re.compile(r"^```\{reference\} (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
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
    for picture in PICTURES:
        if picture.startswith(f"{figure}."):
            assert f"(../../figures/{picture}.png)" in text
    for heading in ("## Measured", "## What is checked", "## How it is made", "- Script:", "- Settings:", "- Time:"):
        assert heading in text
    assert re.search(r"^\*\*Claim\.\*\* .+", text, re.MULTILINE)
    assert re.search(r"^\|---", text, re.MULTILINE), "the measured numbers are a table"
    readme = (ROOT / "README.md").read_text()
    assert f'src="figures/{figure}.png"' in readme
    assert f"(docs/figures/{figure}.md)" in readme
    assert f"({figure}.md)" in (page.parent / "README.md").read_text()


def pages_below(page: Path) -> set[Path]:
    """A page of the site and all that its tables of contents lead to."""
    found, todo = set(), [page]
    while todo:
        page = todo.pop()
        if page in found:
            continue
        found.add(page)
        for block in TOCTREE.findall(page.read_text()):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            for entry in entries:
                pages = sorted(page.parent.glob(f"{entry}.md"))
                assert pages, f"{page} lists {entry}, which is no page"
                todo += [path.resolve() for path in pages]
    return found


def test_identity_the_index_of_the_site_reaches_every_page():
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "README.md"}
    assert pages_below(ROOT / "docs" / "index.md") == pages


def test_failure_a_page_that_no_page_lists_is_not_reached(tmp_path):
    (tmp_path / "index.md").write_text("# Index\n\n```{toctree}\n:hidden:\n\nfirst\n```\n")
    (tmp_path / "first.md").write_text("# First\n\n[second](second.md)\n")
    (tmp_path / "second.md").write_text("# Second\n")
    assert pages_below(tmp_path / "index.md") == {tmp_path / "index.md", tmp_path / "first.md"}
    (tmp_path / "first.md").write_text("```{toctree}\nmissing\n```\n")
    with pytest.raises(AssertionError, match=r"lists missing, which is no page"):
        pages_below(tmp_path / "index.md")


def names_in_reference(module: str) -> list[str]:
    """The names of a module that the pages of the reference list; "*" for all."""
    blocks = [
        block for page in (ROOT / "docs" / "reference").glob("*.md") for block in REFERENCE.findall(page.read_text())
    ]
    return [name for found, content in blocks if found == module for name in content.split() or ["*"]]


def test_identity_the_reference_has_every_public_name_once():
    elsewhere = {*adamflow._LATER, *adamflow._FROM_LATER}  # which have pages of their own
    assert sorted(names_in_reference("adamflow")) == sorted(set(adamflow.__all__) - elsewhere)
    modules = [*adamflow._LATER, "torch"]
    modules += [
        f"plotting.{name}" for name in adamflow.plotting.__all__ if inspect.ismodule(vars(adamflow.plotting)[name])
    ]
    for module in modules:
        assert names_in_reference(f"adamflow.{module}") == ["*"], module


def test_identity_optional_arguments_stand_below_those_that_everyone_needs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    groups = importlib.import_module("argument_groups")

    def function(a, b, *, c, d=1, e=2, f=3): ...

    assert groups.optional_names(function) == {"d", "e", "f"}
    lines = [
        "Do it.",
        "",
        "Args:",
        "    a: first.",
        "    d: one",
        "        more.",
        "    c: must.",
        "    e, f: two.",
        "",
    ]
    rest = ["Returns:", "    a number."]
    assert groups.grouped([*lines, *rest], {"d", "e", "f"}) == [
        *["Do it.", "", "Args:", "    a: first.", "    c: must.", ""],
        *["Other Parameters:", "    d: one", "        more.", "    e, f: two.", "", *rest],
    ]
    assert groups.grouped(lines, {"e"}) == lines  # f, which shares its line, is needed
    assert groups.grouped(rest, {"d"}) == rest
    # The longest list of the package: nothing is lost.
    lines = inspect.getdoc(adamflow.solve).splitlines()
    split = groups.grouped(lines, groups.optional_names(adamflow.solve))
    assert "Other Parameters:" in split
    assert sorted(filter(str.strip, lines)) == sorted(set(filter(str.strip, split)) - {"Other Parameters:"})
