"""Reports and comparisons in a browser: quick, quiet, whole, and as wide as the screen.

They need Debian's chromium and chromium-driver and Selenium; in CI none of them is left out.
"""

import importlib.util
import json
import os
import shutil
import time

import pytest
from test_report import write_run

from isthmus.pages.compare import compare
from isthmus.pages.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PHONE, SMALL, DESK = 390, 420, 1200  # pixels across
STEPS = 10_000


def obstacle():
    """Return why no browser can be started here, or None."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install chromium chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "no selenium: pip install -e '.[dev]'"
    return None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that tells what it fetched and what its console said."""
    if why := obstacle():
        (pytest.fail if "CI" in os.environ else pytest.skip)(why)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> page: the report of a long run, and a comparison of three runs."""
    parent = tmp_path_factory.mktemp("runs")
    long_name = "a_site_with_a_name_that_is_longer_than_a_phone_is_wide_and_has_no_blank"
    long = write_run(
        parent / "long", STEPS, name=long_name, loss=lambda step: (step * 7919 % 1000) / step
    )
    others = [
        write_run(parent / name, STEPS // 10, compressor=name, digest=name * 2)
        for name in ("int8", "one_bit", "top_k")
    ]
    return {"report": write_report(long), "comparison": parent / compare(others)["page"]}


class Visit:
    """A page in the browser: how long it took to be painted, what it fetched and said."""

    def __init__(self, browser, page, width):
        self.browser = browser
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == PHONE},
        )
        browser.get("about:blank")
        for kind in ("performance", "browser"):
            browser.get_log(kind)
        start = time.perf_counter()
        browser.get(page.as_uri())
        browser.execute_async_script(
            "const done = arguments[0];requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )
        self.seconds = time.perf_counter() - start
        told = (json.loads(line["message"])["message"] for line in browser.get_log("performance"))
        self.fetched = [
            message["params"]["request"]["url"]
            for message in told
            if message["method"] == "Network.requestWillBeSent"
        ]
        self.console = browser.get_log("browser")

    def ask(self, script):
        return self.browser.execute_script(f"return {script}")


@pytest.fixture(
    scope="module",
    params=[("report", DESK), ("report", PHONE), ("comparison", DESK), ("comparison", PHONE)],
    ids=lambda each: f"{each[0]}-{each[1]}",
)
def visit(request, browser, pages):
    name, width = request.param
    return Visit(browser, pages[name], width), pages[name], width


def test_a_page_opens_at_once_and_is_small(visit, browser):
    seen, page, width = visit
    assert page.stat().st_size < 5e6
    for _ in range(4):  # a machine has slow moments
        if seen.seconds < 2:
            break
        seen = Visit(browser, page, width)
    assert seen.seconds < 4


def test_a_page_fetches_nothing_and_the_console_is_silent(visit):
    seen, page, _ = visit
    assert [url for url in seen.fetched if not url.startswith("data:")] == [page.as_uri()]
    assert seen.console == []


def test_every_chart_is_there_and_can_be_seen(visit):
    seen, page, width = visit
    sizes = seen.ask(
        "[...document.querySelectorAll('figure svg')].map(svg => {"
        "const box = svg.getBoundingClientRect();"
        "return [box.left, box.right, box.height, svg.querySelectorAll('path').length]})"
    )
    assert len(sizes) == (11 if page.name == "report.html" else 7)
    for left, right, height, paths in sizes:
        assert 0 <= left < right <= width
        assert right - left > 300
        assert height > 60
        assert paths > 5


def test_no_page_is_wider_than_the_screen(visit):
    seen, _, width = visit
    assert seen.ask("document.documentElement.scrollWidth") <= width


def test_three_columns_can_be_read_on_a_phone_without_moving_them(browser, tmp_path):
    """With numbers of runs as they are: five digits of milliseconds, seven of bytes."""
    runs = [write_run(tmp_path / name, digest=name * 4) for name in ("one", "two", "six")]
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        for term in summary["terms"]:
            term |= {"predicted_seconds": 0.0123456, "measured_seconds": 0.0134567}
        (run / "summary.json").write_text(json.dumps(summary))
    seen = Visit(browser, tmp_path / compare(runs)["page"], SMALL)
    assert seen.ask("innerWidth") == SMALL
    widths = seen.ask(
        "[...document.querySelectorAll('.scroll')].map(each => [each.scrollWidth, each.clientWidth])"
    )
    assert len(widths) >= 3
    assert all(wanted <= given for wanted, given in widths), widths


@pytest.mark.parametrize("light", ["light", "dark"])
def test_the_words_of_charts_can_be_read_by_day_and_by_night(browser, pages, light):
    """At least 4.5 to 1 between words and what is behind them (WCAG AA)."""
    seen = Visit(browser, pages["report"], DESK)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": light}]}
    )
    ink, card = seen.ask(
        "[getComputedStyle(document.querySelector('figure svg text')).fill,"
        "getComputedStyle(document.querySelector('section')).backgroundColor]"
    )
    bright, dim = sorted((luminance(ink), luminance(card)), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) > 4.5
    assert (luminance(card) < luminance(ink)) == (light == "dark")


def luminance(colour):
    """Return the relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
