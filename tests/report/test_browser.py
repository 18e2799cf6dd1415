"""The page in a real browser: no error, no request, and hover, click, slider and keyboard work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layersearch.report.page import write_report
from tests.helpers.browser import WAIT, chromium
from tests.helpers.conversion_folders import conversion_folder
from tests.helpers.hostile import hostile_run

pytest.importorskip("plotly", reason="needs the extra report: pip install 'layersearch[report]'")
pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SELECTION = ROOT / "analysis" / "smollm2" / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Opened:
    """A page in the browser, with what it logged and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def check_quiet(self) -> None:
        """Check that nothing was logged, and nothing asked for but the file and its own unpacked script."""
        assert self.troubles == []
        assert [url for url in self.requests[1:] if not url.startswith(("blob:", "data:"))] == []


@pytest.fixture(scope="module")
def selection(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Open the page of a real selection."""
    opened = Opened(browser, write_report([SELECTION], tmp_path_factory.mktemp("page") / "report.html"))
    yield opened
    opened.context.close()


def test_selection_page_draws_every_figure_without_an_error(selection: Opened) -> None:
    names = ["frontier", "needs", "baselines", "positions", "retrieval", "depths", "per_l", "noise"]
    boxes = selection.page.locator(".plot")
    assert [boxes.nth(at).get_attribute("data-plot") for at in range(boxes.count())] == names
    assert selection.page.locator(".plot:has(.main-svg .cartesianlayer .subplot)").count() == len(names)
    assert selection.page.locator(".layers rect").count() > 30
    selection.check_quiet()


def test_hover_over_the_winner_shows_its_numbers(selection: Opened) -> None:
    selection.page.locator('[data-plot="frontier"] .scatterlayer .trace path.point').last.hover(force=True)
    text = selection.page.locator('[data-plot="frontier"] .hoverlayer .hovertext').text_content()
    for words in (
        "full 7 17 18 23; 64+sink:4 x20",
        "cost 26.7%, l = 4, KV cache 4.58 MiB",
        "+0.151 ± 0.038",
        "digits right",
    ):
        assert words in text


def test_click_on_a_point_shows_its_layers_and_copies_it(selection: Opened) -> None:
    page = selection.page
    page.locator('[data-plot="frontier"] .scatterlayer .trace path.point').last.click(force=True)
    page.wait_for_function("document.getElementById('toast').textContent.startsWith('Copied the schedule')")
    assert page.locator(".picture-title").text_content() == "The winner"
    page.locator("button.pick").first.press("Enter")
    assert page.locator(".picture-title").text_content() == "Shown: 64+sink:4 x30"
    assert page.locator(".chosen pre").first.text_content() == "window:64+sink:4*30"
    assert page.locator(".chosen pre").last.text_content().startswith("layersearch convert --model ")
    page.get_by_role("button", name="Back to the winner").press("Enter")
    assert page.locator(".picture-title").text_content() == "The winner"
    selection.check_quiet()


def test_slider_answers_for_another_budget_by_keyboard(selection: Opened) -> None:
    page, slider = selection.page, selection.page.get_by_role("slider")
    assert page.locator(".slider output").text_content() == "26.7%"
    assert "full 7 17 18 23; 64+sink:4 x20" in page.locator(".solved").text_content()
    slider.press("Home")
    assert page.locator(".slider output").text_content() == slider.get_attribute("aria-valuetext") == "12.8%"
    assert "64+sink:4 x30" in page.locator(".solved").text_content()
    slider.press("ArrowRight")
    assert "Its loss was not measured." in page.locator(".solved").text_content()
    slider.press("End")
    assert "full x30" in page.locator(".solved").text_content()
    selection.check_quiet()


def test_hover_and_table_show_retrieval_by_depth_with_all_full_and_chance(selection: Opened) -> None:
    page, figure = selection.page, selection.page.locator('[data-plot="depths"]')
    labels = figure.locator(".legendtext").all_text_contents()
    assert (labels[:2], labels[-1]) == (["winner", "all_full"], "chance 0.06")
    figure.locator(".scatterlayer .trace path.point").first.hover(force=True)
    assert (
        "256 tokens, depth 0.1: 0.800 ± 0.077 (12 answers)"
        in figure.locator(".hoverlayer .hovertext").first.text_content()
    )
    table = page.locator("section", has=figure).locator("table")
    assert table.locator("tbody tr").count() == 3 * 4
    assert table.locator("thead th").all_text_contents()[-2:] == ["chance", "answers"]
    selection.check_quiet()


def test_axes_of_the_frontier_are_chosen(selection: Opened) -> None:
    page = selection.page
    title = page.locator('[data-plot="frontier"] .ytitle')
    assert title.text_content() == "text loss minus all-full's, nats"
    page.get_by_label("digits right", exact=True).check()
    assert title.text_content() == "share of hidden digits right"
    page.get_by_label("KV cache", exact=True).check()
    assert page.locator('[data-plot="frontier"] .xtitle').text_content() == "KV cache, bytes"
    selection.check_quiet()


def test_dark_mode_changes_the_page_and_its_figures(selection: Opened) -> None:
    page = selection.page
    for scheme, paper, ink in (
        ("light", "rgb(255, 255, 255)", "rgb(27, 31, 36)"),
        ("dark", "rgb(18, 22, 27)", "rgb(230, 233, 237)"),
    ):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        page.wait_for_function(f"getComputedStyle(document.querySelector('.plot .xtitle')).fill === '{ink}'")
    page.emulate_media(color_scheme="light")


def test_narrow_window_does_not_scroll_sideways(selection: Opened) -> None:
    selection.page.set_viewport_size({"width": 360, "height": 700})
    selection.page.wait_for_timeout(300)
    assert selection.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    selection.page.set_viewport_size({"width": 1280, "height": 900})


def test_page_of_a_conversion_draws_its_figures_without_an_error(browser: Any, tmp_path: Path) -> None:
    run = conversion_folder(tmp_path / "<script>window.attacked=1</script>")
    opened = Opened(browser, write_report([run], tmp_path / "report.html"))
    page = opened.page
    boxes = page.locator(".plot")
    names = [boxes.nth(at).get_attribute("data-plot") for at in range(boxes.count())]
    assert names == ["training", "positions", "retrieval"]
    assert page.locator(".plot:has(.main-svg .cartesianlayer .subplot)").count() == len(names)
    assert page.locator(".picture-title").text_content() == "The schedule"
    assert "original 2.0000" in page.locator('[data-plot="training"] .annotation-text').all_text_contents()
    assert page.evaluate("window.attacked") is None
    opened.check_quiet()
    opened.context.close()


def test_hostile_run_does_nothing(browser: Any, saved_run: Path, tmp_path: Path) -> None:
    opened = Opened(browser, write_report([hostile_run(saved_run, tmp_path)], tmp_path / "report.html"))
    page = opened.page
    for at in range(page.locator("button.pick").count()):
        page.locator("button.pick").nth(at).dispatch_event("click")
    page.locator('[data-plot="baselines"] .scatterlayer path.point').first.hover(force=True)
    assert "<a href=" in page.locator('[data-plot="baselines"] .hoverlayer').text_content()
    assert page.evaluate("window.attacked") is None
    hrefs = page.evaluate("[...document.querySelectorAll('[href]')].map((one) => one.getAttribute('href'))")
    assert [href for href in hrefs if not href.startswith("#")] == []
    assert page.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    opened.check_quiet()
    opened.context.close()
