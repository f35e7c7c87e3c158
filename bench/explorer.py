"""The explorer as a person sees it: its page in headless Chromium, driven by the keyboard, timed and photographed.

`python bench/explorer.py` prints how long the page takes to follow a slider, and what it took to start. Needs the extra
`browser` and a Chromium of the system; without either it says so and ends with status 4.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What Chromium of a distribution is called.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: For machines without a graphics card or a sandbox, and nothing that calls its maker.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
MISSING = 4
#: How long to wait for what is compiled, on a slow machine.
PATIENCE = 300_000


def missing() -> str:
    """What a run lacks, in words; nothing if it lacks nothing."""
    lacks = [name for name in ("bokeh", "playwright") if importlib.util.find_spec(name) is None]
    if lacks:
        return f"{' and '.join(lacks)}, of the extra `browser`"
    return "" if browser() else f"a browser: none of {', '.join(BROWSERS)} is on the path"


def browser() -> str | None:
    """The path of a Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a server of the page, in a process of its own."""
    command = [sys.executable, "-m", "adamflow", "explore", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError(f"the explorer did not start: {line!r}")
        yield line.split(" is at ")[1].split(" ")[0]
    finally:
        process.terminate()
        process.wait()


def measure(moves: int, screenshots: Path | None) -> dict[str, Any]:
    """Open the page, move sliders, and tell what happened.

    Args:
        moves: steps of a slider that are timed.
        screenshots: a folder for pictures of the page, or none.
    """
    from playwright.sync_api import sync_playwright

    begun = time.perf_counter()
    with served() as address, sync_playwright() as playwright:
        answer: dict[str, Any] = {"server_seconds": time.perf_counter() - begun, "address": address}
        window = playwright.chromium.launch(executable_path=browser(), args=list(FLAGS))
        page = window.new_page(viewport={"width": 1440, "height": 760})
        answer |= {"errors": [], "requests_elsewhere": []}
        page.on("console", lambda said: answer["errors"].append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: answer["errors"].append(str(error)))
        page.on("request", lambda asked: answer["requests_elsewhere"].append(asked.url) if _elsewhere(asked) else None)
        opened = page.goto(address)
        if opened is None or not opened.ok:
            raise RuntimeError(f"the page did not open: {opened}")
        numbers = page.get_by_text("largest |eigenvalue|")
        numbers.wait_for(timeout=PATIENCE)
        answer["page_seconds"] = time.perf_counter() - begun
        answer["handles"] = page.locator(".noUi-handle").count()
        answer["milliseconds"] = _timed_moves(page, moves)
        answer["changed"] = {name: _changes(page, index) for index, name in enumerate(("beta", "gamma", "eta"))}
        if screenshots is not None:
            page.screenshot(path=screenshots / "explorer.png")
            # β = .9 at a rate twice as large: at the edge of stability.
            for index, key, count in ((0, "ArrowLeft", 50), (2, "ArrowRight", 25)):
                for _ in range(count):
                    _press(page, index, key)
            page.wait_for_timeout(3000)
            page.screenshot(path=screenshots / "explorer-edge.png")
        answer["compiling"] = _changes(page, 5, "ArrowLeft", until="computed in")
        window.close()
    return answer


def _elsewhere(asked: Any) -> bool:
    return not asked.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def _words(page: Any) -> str:
    """All numbers of the page."""
    return page.locator("table").first.inner_text()


def _press(page: Any, index: int, key: str) -> None:
    page.locator(".noUi-handle").nth(index).focus()
    page.keyboard.press(key)


def _timed_moves(page: Any, moves: int) -> dict[str, float]:
    """From the key to the new numbers on the page, in milliseconds, by the clock of the page itself."""
    found = []
    for _ in range(moves):
        page.locator(".noUi-handle").nth(2).focus()
        page.evaluate(_WATCH)
        page.keyboard.press("ArrowLeft")
        found.append(page.evaluate("() => window.followed"))
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


#: A promise of the milliseconds from the next key to the next change of the table of numbers.
_WATCH = """() => {
  const find = (root) => {
    for (const element of root.querySelectorAll('*')) {
      if (element.tagName === 'TABLE') return root;
      if (element.shadowRoot) { const found = find(element.shadowRoot); if (found) return found; }
    }
    return null;
  };
  const root = find(document);
  window.followed = new Promise((resolve) => {
    let begun = null;
    document.addEventListener('keydown', () => { begun = performance.now(); }, {once: true, capture: true});
    const observer = new MutationObserver(() => {
      if (begun === null) return;
      observer.disconnect();
      requestAnimationFrame(() => resolve(performance.now() - begun));
    });
    observer.observe(root, {childList: true, subtree: true, characterData: true});
  });
}"""


def _changes(page: Any, index: int, key: str = "ArrowRight", until: str = "") -> dict[str, Any]:
    """Move a slider by five steps, one for the order, and tell what has changed on the page."""
    words, plots = _words(page), [plot.screenshot() for plot in page.locator(".bk-Figure").all()]
    for _ in range(1 if until else 5):
        _press(page, index, key)
    if until:
        page.get_by_text("Compiling for").wait_for(timeout=PATIENCE)
        page.get_by_text(until).wait_for(timeout=PATIENCE)
    deadline = time.perf_counter() + 20
    while _words(page) == words and time.perf_counter() < deadline:
        page.wait_for_timeout(50)
    page.wait_for_timeout(500)
    after = [plot.screenshot() for plot in page.locator(".bk-Figure").all()]
    return {
        "numbers": [line for line in _words(page).splitlines() if line not in words.splitlines()],
        "plots": [i for i, (old, new) in enumerate(zip(plots, after, strict=True)) if old != new],
    }


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=30, help="steps of a slider that are timed")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of the page")
    flags = parser.parse_args()
    if lacks := missing():
        print(f"the page cannot be driven without {lacks}", file=sys.stderr)
        return MISSING
    print(json.dumps(measure(flags.moves, flags.screenshots), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
