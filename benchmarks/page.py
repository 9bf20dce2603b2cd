"""How large the report's page is, and how soon it can be used, with 62 models and with 1,250 in eight modes.

    python benchmarks/page.py

The tables are synthetic (tests/synthetic_sweep.py); the page is real, and so is the browser: Chromium and its driver must be
installed. Times are of this machine as busy as it is.

making      making the page out of the tables
ready       from the start of loading until everything on the page answers; CPU is what the page's thread used until then
search      until the board shows the cells with a word in their name
open        until a cell shows its evidence and pictures
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import synthetic_sweep  # noqa: E402
from browser.chromium import Browser  # noqa: E402
from timmgate.report import page  # noqa: E402

SEARCH = """const started = performance.now(), box = document.getElementById('search');
box.value = 'vit1_'; box.dispatchEvent(new Event('input'));
window.search_ms = 0;
const look = () => document.getElementById('selected').textContent.startsWith('8 of ')
    ? window.search_ms = performance.now() - started : requestAnimationFrame(look);
look()"""
OPEN = """const started = performance.now();
document.querySelector('.tile:not(.aside)').click();
window.open_ms = 0;
const look = () => document.querySelector('#cell .drawing svg, #cell #command')
    ? window.open_ms = performance.now() - started : requestAnimationFrame(look);
look()"""


def measure(models: int, browser: Browser) -> list[str]:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results", "cpu")
        synthetic_sweep.write(results, models)
        started = time.perf_counter()
        page.write(results, results / "report.html")
        making = time.perf_counter() - started
        browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        browser.open(results / "report.html")
        used = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        cpu = next(each["value"] for each in used if each["name"] == "TaskDuration")
        ready = int(browser.run("return document.documentElement.dataset.readyMs"))
        browser.run(SEARCH)
        search = browser.wait_for("return window.search_ms")
        browser.run(OPEN)
        opened = browser.wait_for("return window.open_ms")
        size = (results / "report.html").stat().st_size
    seconds = [making, ready / 1e3, cpu, search / 1e3, opened / 1e3]
    return [f"{models * len(synthetic_sweep.MODES):,}", f"{size / 1e6:.1f}", *(f"{each:.2f}" for each in seconds)]


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    browser = Browser()
    browser.resize(1280, 900)
    print("cells\tMB\tmaking, s\tready, s\tready, CPU s\tsearch, s\topen, s")
    for models in (62, 1250):
        print(*measure(models, browser), sep="\t")
    browser.close()


if __name__ == "__main__":
    main()
