"""A headless Chromium that a test drives: sizes, light and dark, and what the page asked for."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A browser with a fresh profile; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        # A tab of its own, which starts blank: the first one shows the browser's own page, whose requests come at any
        # time and by addresses that change with the version.
        window.switch_to.new_window("tab")
        yield window
    finally:
        window.quit()


def show(window: Any, page: Path, *, width: int, scheme: str) -> None:
    """Open a page at a width in CSS pixels, for a reader who prefers `scheme`."""
    resize(window, width)
    preference = {"name": "prefers-color-scheme", "value": scheme}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
    window.get(page.as_uri())


def resize(window: Any, width: int) -> None:
    """Make the window this many CSS pixels wide."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def image_of(element: Any) -> np.ndarray:
    """What is seen of an element, in grey, uint8 [H, W]."""
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        return np.asarray(image.convert("L"))


def requested(window: Any) -> list[str]:
    """The addresses that this tab and the frames in it asked for since the last call, without data within the page."""
    entries = [json.loads(entry["message"]) for entry in window.get_log("performance")]
    urls = [
        entry["message"]["params"]["request"]["url"]
        for entry in entries
        if entry["webview"] == window.current_window_handle
        and entry["message"]["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]


CONTRASTS = """
function channel(v) { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }
function light(c) { return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]); }
function parse(text) { return text.match(/[\\d.]+/g).map(Number); }
function behind(element) {
  for (let e = element; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
}
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own) continue;
  const a = light(parse(getComputedStyle(element).color)), b = light(behind(element));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, element.tagName + " " + element.textContent.trim().slice(0, 40)]);
}
return found;
"""
"""Contrast of every element with text of its own, by WCAG 2's formula, and what it says."""
