"""The directive `{figures}`: every figure of the README's table, as a card with its picture, sentence and page."""

import re
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

README = Path(__file__).parents[2] / "README.md"
_ROW = re.compile(
    r'^\| \[<img src="(?P<picture>[^"]+)"[^>]*alt="(?P<title>[^"]+)">\]\(docs/(?P<page>[^)]+)\.md\)'
    r" \| (?P<sentence>.+) \|$",
    re.MULTILINE,
)


class Figure(NamedTuple):
    """A row of the README's table of figures; paths are relative to the repository and to docs/."""

    picture: str
    title: str
    page: str
    sentence: str


def figures() -> list[Figure]:
    """The figures of the README, in its order."""
    text = README.read_text()
    found = [Figure(**match.groupdict()) for match in _ROW.finditer(text)]
    rows = text.count("\n| [<img src=")
    if len(found) != rows:
        raise ValueError(f"{rows} rows of README.md begin with a picture, but {len(found)} read as figures; see {_ROW}")
    return found


class Figures(SphinxDirective):
    """A grid of cards, one for each figure."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(README))
        lines = ["::::{grid} 1 2 3 3", ":gutter: 3", ""]
        for figure in figures():
            lines += [
                f":::{{grid-item-card}} {figure.title}",
                f":img-top: ../{figure.picture}",
                f":img-alt: {figure.title}",
                f":link: {figure.page}",
                ":link-type: doc",
                ":class-card: figure-card",
                "",
                figure.sentence,
                ":::",
                "",
            ]
        lines += ["::::"]
        return self._parsed(lines)

    def _parsed(self, lines: list[str]) -> list[nodes.Node]:
        """Parse lines in the markup of the page."""
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(README)), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("figures", Figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
