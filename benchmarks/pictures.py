"""Pictures of a report for the documentation, taken in a real browser out of the tables of a real run.

    python benchmarks/pictures.py results/cpu docs/pictures \\
        report= wrong=cell=cpu/default/inference-relu-bug/test_resnet stages=figure-stages

Each further argument is the name of a picture, and what it shows: nothing is the top of the page, `cell=...` a cell as links
name it, `cell=...+leaf_errors` that picture of it, anything else the element with that id.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser.chromium import Browser  # noqa: E402
from timmgate.report import page  # noqa: E402

DRAWN = "return [...document.querySelectorAll('{place} .drawing')].every(each => each.matches('.empty') || each.firstChild)"
SETTLED_S = 1.0
"""For what moves into place after it is drawn."""


def take(browser: Browser, report: Path, target: str, path: Path) -> None:
    """Write one picture."""
    browser.resize(1280, 860)
    is_cell = target.startswith("cell=")
    target, _, part = target.partition("+") if is_cell else (target, "", "")
    browser.open(report, f"#{target}" if is_cell else "")
    element = None
    if is_cell:
        browser.wait_for(DRAWN.format(place="#cell"))
        element = f"of-cell-{part}" if part else "cell"
        browser.run("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", element)
    elif target:
        browser.run("document.getElementById(arguments[0]).scrollIntoView()", target)
        browser.wait_for(DRAWN.format(place=f"#{target}"))
        browser.run("document.getElementById(arguments[0]).scrollIntoView()", target)  # those above it are drawn now, too
        element = target
    time.sleep(SETTLED_S)
    browser.picture(path, element)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Make the page and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", nargs="+", metavar="name=target")
    asked = parser.parse_args()
    browser = Browser()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.html")
        page.write(asked.results, report)
        for picture in asked.pictures:
            name, target = picture.split("=", 1)
            take(browser, report, target, asked.folder / f"{name}.png")
    browser.close()


if __name__ == "__main__":
    main()
