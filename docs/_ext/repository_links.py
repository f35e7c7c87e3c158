"""Links from pages to files at the root of the repository, as links to what the site has of them."""

from pathlib import Path

from sphinx.application import Sphinx

#: Files that are pages of the site under another name, relative to the root and to docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "docs/README.md": "index.md",
    "figures": "gallery.md",
    "examples": "../examples/signgd_transformer.py",
}


def on_site(text: str, depth: int) -> str:
    """A page's text with the links to these files changed.

    Args:
        text: Markdown.
        depth: how many folders below docs/ the page is.
    """
    up = "../" * depth
    for file, page in PAGES.items():
        inside = file.removeprefix("docs/")
        link = f"{up}{inside}" if inside != file else f"{up}../{file}"
        text = text.replace(f"]({link})", f"]({up}{page})")
    return text


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = on_site(source[0], len(Path(name).parts) - 1)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
