"""Where things are on the page, in a real browser: on a phone, in a wide window, on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.browser import image_of, resize, show

pytestmark = pytest.mark.slow


def place(window: Any, selector: str) -> dict[str, float]:
    """The box of the first element of this selector, in CSS pixels from the page's top left."""
    box: dict[str, float] = window.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return {left: b.left + scrollX, right: b.right + scrollX, top: b.top + scrollY, bottom: b.bottom + scrollY}",
        selector,
    )
    return box


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_edge_beyond_which_there_is_more_is_shaded(
    window: Any, built: Path, scheme: str
) -> None:
    """Of tables and of wide figures; at the end of the scroll, and where nothing scrolls, the page's colour is left."""

    def edges(selector: str, left: int) -> tuple[bool, bool]:
        (first, *_) = window.find_elements("css selector", selector)
        window.execute_script("arguments[0].scrollIntoView({block: 'center'})", first)
        window.execute_script("arguments[0].scrollLeft = arguments[1]", first, left)
        grey = image_of(first)
        # Rows of text and stripes come between: the median is the empty edge.
        difference = np.abs(np.median(grey, axis=0) - page)
        return bool(difference[0] > 50), bool(difference[-1] > 50)

    show(window, built / "index.html", width=390, scheme=scheme)
    page = float(image_of(window.find_element("css selector", "h2"))[-1, 0])
    figure, table = "#figure-7 .plate", "#table-1 .scroll"
    assert edges(figure, 0) == (False, True)
    assert edges(figure, 60) == (True, True)
    assert edges(figure, 10_000) == (True, False)
    # The column of methods stays in place, at the left.
    assert edges(table, 0) == (False, True)
    assert edges(table, 10_000) == (False, False)
    resize(window, 700)
    assert edges(table, 60) == (True, True)
    resize(window, 1400)
    assert edges(table, 0) == edges(figure, 0) == (False, False)


def test_the_page_itself_never_scrolls_sideways_and_fills_wide_windows(
    window: Any, built: Path
) -> None:
    show(window, built / "index.html", width=320, scheme="light")
    columns = {}
    for width in (320, 390, 560, 800, 1087, 1100, 1280, 1600, 1920, 2560):
        resize(window, width)
        inner, whole = window.execute_script(
            "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
        )
        assert whole <= inner <= width
        three, four, five = (place(window, f"#figure-{number}") for number in (3, 4, 5))
        columns[width] = three["top"] == four["top"]
        assert columns[width] is (three["right"] < four["left"])
        assert five["top"] >= three["bottom"]
    assert columns == {width: width >= 1100 for width in columns}
    resize(window, 1920)
    eight, nine = place(window, "#figure-8"), place(window, "#figure-9")
    assert eight["top"] == nine["top"]
    assert nine["right"] > 1800
    assert nine["right"] - nine["left"] > 500
    one, other = place(window, "#table-1"), place(window, "#table-4")
    assert one["top"] == other["top"]
    assert other["right"] > 1800
    whole = window.execute_script(
        "return [...document.querySelectorAll('.scroll, .plate')].every(e => e.scrollWidth === e.clientWidth)"
    )
    assert whole, "wide windows need no scrolling"


def test_lines_of_text_stay_readable(window: Any, built: Path) -> None:
    show(window, built / "index.html", width=1920, scheme="light")
    lengths = window.execute_script("""
        return [...document.querySelectorAll("p, li, figcaption")].map(element => {
          const range = document.createRange();
          range.selectNodeContents(element);
          const lines = new Set([...range.getClientRects()].map(r => Math.round(r.bottom / 12)));
          return [element.textContent.trim().length / lines.size, element.textContent.trim()];
        });
    """)
    long = [text for length, text in lengths if length > 90]
    assert len(lengths) > 20
    assert long == []


def test_every_table_and_figure_is_listed_by_a_name_of_its_own(window: Any, built: Path) -> None:
    show(window, built / "index.html", width=1280, scheme="light")
    links = window.execute_script("""
        return [...document.querySelectorAll("section nav a")].map(
          a => [a.textContent, document.querySelector(a.getAttribute("href") + " h3").textContent]);
    """)
    named = [link for link, _ in links]
    assert len(set(named)) == len(named) == 10
    titles = {link.split(". ", 1)[1] for link in named}
    assert len(titles) == 10, "told apart without their numbers too"
    assert all(link.startswith(heading) for link, heading in links)
    headings = window.execute_script(
        "return [...document.querySelectorAll('article h3')].map(h => h.textContent)"
    )
    assert headings == [heading for _, heading in links]
    regions = window.execute_script(
        "return [...document.querySelectorAll('[role=region]')].map(e => e.getAttribute('aria-label'))"
    )
    assert len(set(regions)) == len(regions)


def test_on_paper_nothing_is_cut_off(window: Any, built: Path) -> None:
    show(window, built / "index.html", width=700, scheme="light")
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        cut = window.execute_script(
            "return [...document.querySelectorAll('table, img, p, h3')]"
            ".filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth)"
            ".map(e => e.textContent)"
        )
        assert cut == []
        seen = window.execute_script(
            "return [...document.querySelectorAll('nav, .files')].filter(e => e.offsetHeight > 0).length"
        )
        assert seen == 0
    finally:
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_needs_no_script(built: Path) -> None:
    page = (built / "index.html").read_text()
    assert "<script" not in page
    assert "default-src 'none'" in page
