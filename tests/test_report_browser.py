"""The report in a real browser: it opens, draws, sorts, fits, and runs nothing that a title holds."""

from __future__ import annotations

import shutil
import sys

import pytest
from test_report import write_data, write_run
from test_report_ids import write_ids

from recbole_gmc import cli

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    root = tmp_path_factory.mktemp("report")
    data = write_data(root / "data")
    runs = [write_ids(write_run(root / "gmc", data_path=data))]
    runs.append(write_run(root / "sas", "SASRec", (0, 0, -1), data_path=data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "kaleido", None)
        assert cli.main(["report", *map(str, runs), f"--output={root}"]) == 0
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.set_default_timeout(180_000)  # of a machine that has much else to do
        opened.errors = []
        opened.on("console", lambda message: message.type == "error" and opened.errors.append(message.text))
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.on("request", lambda asked: asked.url.startswith("http") and opened.errors.append(asked.url))
        opened.goto((root / "report.html").as_uri())
        opened.wait_for_selector("#figure-ranks .main-svg")
        yield opened
        browser.close()


def test_it_opens_without_errors_and_draws_every_figure(page):
    figures = page.locator(".figure")
    assert figures.count() >= 5 + 7  # of lists, and of semantic IDs
    for place in range(figures.count()):
        assert figures.nth(place).locator(".main-svg").count() >= 1
    assert page.errors == []


def test_the_table_sorts_by_a_click(page):
    def column(number):
        return page.locator(f"table.sortable tbody td:nth-child({number})").all_inner_texts()

    head = page.locator("table.sortable th button", has_text="ndcg@10").first
    number = page.locator("table.sortable th").all_inner_texts().index("ndcg@10") + 1
    head.click()
    assert column(number) == sorted(column(number), key=float, reverse=True)
    head.click()
    assert column(number) == sorted(column(number), key=float)
    head = page.locator("table.sortable th button", has_text="difference").first
    for _ in range(2):  # the first run has none, and stays last both ways
        head.click()
        shown = column(page.locator("table.sortable th").all_inner_texts().index("difference") + 1)
        assert all(shown[:2]) and not any(shown[2:])


def test_a_script_in_a_title_stays_text(page):
    assert page.evaluate("window.bad") is None
    assert "<script>window.bad = 1</script>" in page.locator(".user").first.inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")  # once every figure has followed
    widths = page.evaluate("Array.from(document.querySelectorAll('.figure .main-svg'), svg => svg.clientWidth)")
    assert 0 < max(widths) <= width


def test_every_figure_is_also_a_picture(tmp_path):
    pytest.importorskip("kaleido")
    run = write_run(tmp_path / "run", data_path=write_data(tmp_path / "data"))
    assert cli.main(["report", str(run)]) == 0
    names = {file.name for file in (run / "figures").iterdir()}
    figures = {name.split(".")[0] for name in names}
    assert {"domains", "ranks", "popularity"} <= figures
    assert names == {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    assert (run / "figures" / "ranks.png").read_bytes().startswith(b"\x89PNG")
