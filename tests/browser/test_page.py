"""The report's page in a real browser: what a person does with it. Skipped where there is none."""

import base64
import re

import pytest

import synthetic_sweep
from timmgate.report import page, pictures

pytest.importorskip("selenium")
from selenium.webdriver.common.keys import Keys

from browser import chromium

pytestmark = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "\"'><img src=x onerror='window.pwned = 3'>",
    "{{ 7 * 7 }} ${window.pwned = 4} `",
    "abc\u202egnp.exe\u200b",
]


@pytest.fixture(scope="module")
def window():
    browser = chromium.Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(window):
    window.resize(1280, 900)
    window.prefer("light")
    return window


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of 62 models in 8 modes, and the rows of its cells."""
    folder = tmp_path_factory.mktemp("run") / "results" / "cpu"
    synthetic_sweep.write(folder, 62, leaves=6, samples=12)
    page.write(folder, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def rows():
    return synthetic_sweep.cells(62)


def shown(browser):
    """How many cells the board shows."""
    return int(browser.run("return document.getElementById('selected').textContent").split(" of ")[0].replace(",", ""))


def wait_for_shown(browser, count):
    text = f"'{count:,} of '"
    browser.wait_for(f"return document.getElementById('selected').textContent.startsWith({text})")


def column(browser, name):
    """The texts of a column of the list, without the interval that stands before a speedup."""
    script = """const heads = [...document.querySelectorAll('#list thead th')].map(head => head.innerText.trim());
        const place = heads.indexOf(arguments[0]);
        return [...document.querySelectorAll('#list tbody tr')].map(row => row.children[place].innerText)"""
    return [text.split("\u2002")[-1].strip() for text in browser.run(script, name)]


def test_nothing_leaves_the_file_and_the_console_stays_empty(browser, report):
    browser.open(report)
    browser.run("document.querySelector('.tile.failure').click()")
    browser.wait_for("return document.querySelector('#cell .drawing svg') !== null")
    browser.run("location.hash = ''; document.getElementById('pictures').scrollIntoView()")
    browser.wait_for("return document.querySelectorAll('figure .drawing :is(svg, canvas)').length === 6")
    console, asked = browser.logs()
    assert console == []
    assert {address for address in asked if not address.startswith(("file:", "data:", "about:"))} == set()
    assert [address for address in asked if address.startswith("file:")] == [report.absolute().as_uri()]


def test_search_and_filters_narrow_the_board(browser, report, rows):
    browser.open(report)
    assert shown(browser) == len(rows)
    browser.press("/")
    browser.press("vit2_large")
    wait_for_shown(browser, 8)
    browser.run("const box = document.getElementById('search'); box.value = ''; box.dispatchEvent(new Event('input'))")
    wait_for_shown(browser, len(rows))
    browser.run("document.querySelector('[data-state=failure]').click()")
    failing = sum(row["accuracy"] != "pass" for row in rows)
    wait_for_shown(browser, failing)
    browser.run(
        "const mode = document.getElementById('mode'); mode.value = 'training-amp'; mode.dispatchEvent(new Event('change'))"
    )
    wait_for_shown(browser, sum(row["accuracy"] != "pass" and row["mode"] == "training-amp" for row in rows))


def test_the_list_is_sorted_by_any_column(browser, report, rows):
    browser.open(report)
    browser.run("document.getElementById('as-list').click()")
    head = "[...document.querySelectorAll('#list thead th')].find(head => head.innerText.trim() === 'speedup')"
    browser.run(f"{head}.click()")
    slowest = sorted(round(row["speedup"], 2) for row in rows)
    browser.wait_for("return document.querySelector('#list th.dt-ordering-asc') !== null")
    assert [float(text) for text in column(browser, "speedup")[:5]] == slowest[:5]
    browser.run(f"{head}.click()")
    browser.wait_for("return document.querySelector('#list th.dt-ordering-desc') !== null")
    assert [float(text) for text in column(browser, "speedup")[:5]] == slowest[:-6:-1]


def test_a_column_is_filtered_by_number(browser, report, rows):
    browser.open(report)
    browser.run("document.getElementById('as-list').click()")
    browser.run("""const heads = [...document.querySelectorAll('#list thead th')];
        const head = heads.find(head => head.innerText.trim() === 'speedup');
        head.querySelector('button').click();
        const box = document.querySelector('.dtcc-dropdown');
        const logic = box.querySelector('select'); logic.value = 'greater'; logic.dispatchEvent(new Event('input'));
        const limit = box.querySelector('input'); limit.value = '2'; limit.dispatchEvent(new Event('input'));""")
    wait_for_shown(browser, sum(row["speedup"] > 2 for row in rows))


def test_a_failing_cell_opens_and_its_link_opens_it_again(browser, report, rows):
    browser.open(report)
    browser.run("document.querySelector('.tile.failure').click()")
    browser.wait_for("return !document.getElementById('cell').hidden")
    text = browser.run("return document.getElementById('cell').innerText")
    assert "3 of 120 tensors differ" in text
    assert "python -m timmgate.worker" in text
    address = browser.run("return location.hash")
    assert address.startswith("#cell=cpu/default/")
    browser.press(Keys.ESCAPE)
    assert browser.run("return document.getElementById('cell').hidden && location.hash === '#board'")
    browser.open(report, address)
    assert browser.run("return document.getElementById('cell').innerText") == text


def test_the_command_of_a_cell_is_copied_as_it_is(browser, report):
    allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", allowed)
    browser.open(report)
    browser.run("document.querySelector('.tile.failure').click()")
    command = browser.wait_for("return document.getElementById('command')?.textContent")
    browser.driver.find_element("css selector", "[data-do=copy]").click()
    browser.wait_for("return document.querySelector('[data-do=copy]').textContent === 'Copied'")
    read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](`${error}`))"
    assert browser.driver.execute_async_script(read) == command


def test_a_browser_that_forbids_copying_says_so(browser, report):
    denied = {"permission": {"name": "clipboard-write"}, "setting": "denied"}
    browser.driver.execute_cdp_cmd("Browser.setPermission", denied)
    browser.open(report)
    browser.run("document.querySelector('.tile.failure').click()")
    browser.wait_for("return document.getElementById('command')")
    browser.driver.find_element("css selector", "[data-do=copy]").click()
    browser.wait_for("return document.querySelector('[data-do=copy]').textContent === 'The browser forbids it'")


def test_a_picture_of_what_was_not_measured_is_not_there(browser, report):
    browser.open(report)
    drawn = browser.run("return [...document.querySelectorAll('.figures > figure')].map((each) => each.id)")
    assert {f"figure-{each.name}" for each in pictures.PICTURES} - {*drawn} == {"figure-changes"}


def test_it_prints_every_cell_and_leaves_the_screen_as_it_was(browser, report, rows):
    browser.open(report)
    browser.run("document.getElementById('as-list').click()")
    listed = "document.querySelectorAll('#list tbody tr').length"
    before = browser.wait_for(f"return {listed}")
    browser.run(f"addEventListener('beforeprint', () => {{ window.printed = {listed}; }})")
    printed = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert browser.run("return window.printed") == len(rows) > before
    browser.wait_for(f"return {listed} === {before}")
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", printed)) > 2


def test_the_headline_links_to_cells_and_kinds(browser, report, rows):
    browser.open(report)
    browser.run("document.querySelector('.findings .cell-link').click()")
    browser.wait_for("return !document.getElementById('cell').hidden")
    browser.run("document.querySelector('[href=\"#kind=graph_breaks\"]').click()")
    wait_for_shown(browser, sum(row["graph_breaks"] > 0 for row in rows))
    assert browser.run("return document.getElementById('cell').hidden")
    browser.run("const kind = document.getElementById('kind'); kind.value = ''; kind.dispatchEvent(new Event('change'))")
    wait_for_shown(browser, len(rows))
    browser.run("document.querySelector('[href=\"#kind=graph_breaks\"]').click()")
    wait_for_shown(browser, sum(row["graph_breaks"] > 0 for row in rows))


def test_keys_alone_move_through_the_board(browser, report):
    browser.open(report)
    browser.run("document.querySelector('#matrix tbody a').focus()")
    for key in (Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER):
        browser.press(key)
    browser.wait_for("return !document.getElementById('cell').hidden")
    opened = browser.run("return location.hash")
    assert opened == browser.run("return document.querySelectorAll('#matrix tbody tr')[1].querySelectorAll('a')[1].hash")
    browser.press("j")
    browser.wait_for(f"return location.hash !== '{opened}'")
    browser.press("k")
    browser.wait_for(f"return location.hash === '{opened}'")


def test_names_say_what_they_mean_when_they_have_the_focus(browser, report):
    browser.open(report)
    browser.press(Keys.TAB)  # so that the page has the focus
    browser.run("document.querySelector('thead [data-tip]').focus()")
    browser.wait_for("return !document.getElementById('tip').hidden")
    assert "accuracy" in browser.run("return document.getElementById('tip').textContent")
    described = "return [...document.querySelectorAll('[aria-describedby=tip]')].map((each) => each.textContent)"
    assert browser.run(described) == ["accuracy"]
    browser.run("document.getElementById('search').focus()")
    assert browser.run(described) == []


def test_names_in_a_cell_are_reached_by_tab(browser, report):
    browser.open(report)
    browser.run("document.querySelector('.findings .cell-link').click()")
    browser.wait_for("return !document.getElementById('cell').hidden")
    unreachable = "return [...document.querySelectorAll('#cell [data-tip]')].filter((each) => each.tabIndex < 0).length"
    assert browser.run(unreachable) == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen_in_light_and_dark(browser, report, width, scheme):
    browser.resize(width, 844)
    browser.prefer(scheme)
    browser.open(report)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    brightness = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(brightness) > 3 * 128) == (scheme == "light")
    browser.run("document.getElementById('theme').click()")
    other = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(other) > 3 * 128) == (scheme == "dark")
    browser.run("document.querySelector('.tile.failure').click()")
    assert browser.run("return document.getElementById('cell').getBoundingClientRect().width <= innerWidth")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_messages_run_nothing(browser, tmp_path, text):
    (row, *others) = synthetic_sweep.cells(2, modes=["inference"])
    row |= {"model": text, "mode": text, "accuracy": "fail_to_run", "accuracy_by_rule": "fail_to_run", "worst_leaf": text}
    row |= {
        "accuracy_message": text,
        "accuracy_cause": text,
        "command": text,
        "torch": text,
        "log": "x.log",
        "verdict": text,
    }
    evidence = [
        {**{name: row[name] for name in ("device", "build", "mode", "model")}, "leaf": text, "message": text, "margin": 2.0}
    ]
    evidence[0] |= {"eager_rmse": 1e-6, "compiled_rmse": 1e-3, "allowed_error": 1e-5, "accuracy": False}
    folder = tmp_path / "results" / "cpu"
    (tmp_path / "x.log").write_text(text)
    synthetic_sweep.write_tables(folder, [row, *others], [(evidence, [])])
    page.write(folder, folder / "report.html")
    browser.open(folder / "report.html")
    browser.run("document.getElementById('as-list').click(); document.querySelector('.findings .cell-link').click()")
    browser.wait_for("return !document.getElementById('cell').hidden")
    browser.run("document.getElementById('pictures').scrollIntoView()")
    browser.wait_for("return document.querySelectorAll('figure .drawing svg').length >= 4")
    visible = text.replace("\u202e", "\\u202e").replace("\u200b", "\\u200b")
    assert browser.run("return document.getElementById('cell-title').textContent") == visible
    assert browser.run("return window.pwned") is None
    console, asked = browser.logs()
    assert console == []
    assert {address for address in asked if address.startswith("http")} == set()


def test_ten_thousand_cells_can_be_searched_and_opened(browser, tmp_path):
    """Their details are those of the gravest; the others have their command."""
    folder = tmp_path / "results" / "cpu"
    synthetic_sweep.write(folder, 1250, leaves=2, samples=6)
    page.write(folder, folder / "report.html")
    assert (folder / "report.html").stat().st_size < 20e6
    browser.open(folder / "report.html")
    assert shown(browser) == 10_000
    browser.run(
        "const box = document.getElementById('search'); box.value = 'nfnet112'; box.dispatchEvent(new Event('input'))"
    )
    wait_for_shown(browser, 8)
    browser.run("document.querySelector('.tile.pass:not(.aside)').click()")
    text = browser.wait_for("return document.getElementById('cell').innerText")
    assert "python -m timmgate.worker" in text
    assert "500 gravest" in text
