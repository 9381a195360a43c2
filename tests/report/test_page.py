"""The report as a whole: its folder, its page in a real browser, its command line."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from iaat_fast.report import build_report
from iaat_fast.report.build import publish
from iaat_fast.report.cli import main
from iaat_fast.run_folder import RunFolder
from tests.report.browser import CONTRASTS, image_of, requested, show
from tests.report.made import cifar_rows, save_record, save_run


@pytest.mark.slow
def test_the_folder_holds_tables_figures_and_the_page(built: Path) -> None:
    assert {path.name for path in (built / "tables").iterdir()} == {
        f"table-{number}.{suffix}" for number in (1, 4) for suffix in ("md", "csv", "tex")
    }
    figures = {path.name for path in (built / "figures").iterdir()}
    numbers = {int(name.split("-")[1]) for name in figures}
    assert numbers == {2, 3, 4, 5, 6, 7, 8, 9}
    stems = {name.rsplit(".", 1)[0] for name in figures}
    assert figures == {f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "pdf", "png")}
    manifest = json.loads((built / "report.json").read_text())
    assert len(manifest["files"]) == 1 + 6 + len(figures)


@pytest.mark.slow
def test_figures_are_what_their_suffix_says(built: Path) -> None:
    for path in (built / "figures").iterdir():
        content = path.read_bytes()
        if path.suffix == ".svg":
            assert ET.fromstring(content).tag.endswith("svg")
            assert b"prefers-color-scheme: dark" in content
        elif path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
        else:
            with Image.open(io.BytesIO(content)) as image:
                assert min(image.size) > 300


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 360])
def test_the_page_in_a_browser(window: Any, built: Path, width: int, scheme: str) -> None:
    page = built / "index.html"
    requested(window)
    show(window, page, width=width, scheme=scheme)
    assert window.get_log("browser") == []
    assert requested(window) == [page.as_uri()]
    images = window.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt, i.clientWidth])"
    )
    assert len(images) == len(list((built / "figures").glob("*.svg")))
    for complete, natural, alt, shown in images:
        assert complete
        assert natural > 0
        assert shown > 0
        assert len(alt) > 20
    inner, whole = window.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert whole <= inner <= width
    contrasts = window.execute_script(CONTRASTS)
    assert len(contrasts) > 100
    assert [what for ratio, what in contrasts if ratio < 4.5] == []
    background = window.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = max(int(value) for value in re.findall(r"\d+", background)) < 64
    assert dark is (scheme == "dark")


@pytest.mark.slow
def test_every_request_of_a_page_is_seen(window: Any, tmp_path: Path) -> None:
    """Of the page, of frames in it and of scripts, to whatever scheme, the browser's own among them."""
    (tmp_path / "frame.html").write_text("<img src='in-frame.png'>")
    page = tmp_path / "page.html"
    page.write_text("""
        <link rel="stylesheet" href="http://127.0.0.1:9/style.css">
        <img src="image.png"><img src="chrome-untrusted://new-tab-page/image.png">
        <img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">
        <iframe src="frame.html"></iframe>
        <script>fetch("http://127.0.0.1:9/fetched").catch(() => 0);</script>
    """)
    expected = {page, *(tmp_path / name for name in ("image.png", "frame.html", "in-frame.png"))}
    show(window, page, width=1400, scheme="light")
    assert set(requested(window)) == {
        *(path.as_uri() for path in expected),
        "http://127.0.0.1:9/style.css",
        "http://127.0.0.1:9/fetched",
        "chrome-untrusted://new-tab-page/image.png",
    }


@pytest.mark.slow
def test_requests_of_the_browsers_own_window_are_not_the_pages(window: Any, built: Path) -> None:
    page, tab = built / "index.html", window.current_window_handle
    requested(window)
    (first,) = (handle for handle in window.window_handles if handle != tab)
    window.switch_to.window(first)
    window.get("chrome://new-tab-page")
    window.switch_to.window(tab)
    show(window, page, width=1400, scheme="light")
    assert requested(window) == [page.as_uri()]


@pytest.mark.slow
def test_the_figures_follow_the_readers_scheme(window: Any, built: Path) -> None:
    """The ink of a figure's axes, which is drawn on no background: dark on light pages, light on dark ones."""
    ink = {}
    for scheme in ("light", "dark"):
        show(window, built / "index.html", width=1400, scheme=scheme)
        (figure,) = window.find_elements("css selector", "#figure-4 img")
        window.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
        grey = image_of(figure)
        # The corner is the page; the ink is what lies farthest from it.
        ink[scheme] = (int(grey[0, 0]), int(grey.min()), int(grey.max()))
    page, darkest, _ = ink["light"]
    assert page > 240
    assert darkest < 60
    page, _, lightest = ink["dark"]
    assert page < 40
    assert lightest > 210


@pytest.mark.slow
def test_headings_and_tables_can_be_found_by_a_screen_reader(window: Any, built: Path) -> None:
    show(window, built / "index.html", width=1400, scheme="light")
    levels = window.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    heads = [element.text for element in window.find_elements("css selector", "h2")]
    assert heads == ["What was measured", "Tables", "Figures", "Runs"]
    tables = window.find_elements("css selector", "table")
    assert len(tables) == 2
    for table in tables:
        lengths = window.execute_script(
            "return [...arguments[0].rows].map(r => [...r.cells].reduce((n, c) => n + c.colSpan, 0))",
            table,
        )
        assert len(set(lengths)) == 1
        assert table.find_elements("css selector", "thead th[scope=col]")
        assert table.find_elements("css selector", "tbody th[scope=row]")
    ids = window.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = window.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert set(targets) <= set(ids)
    files = window.execute_script(
        "return [...document.querySelectorAll('.files a')].map(a => a.getAttribute('href'))"
    )
    assert files
    assert all((built / name).is_file() for name in files)


@pytest.mark.slow
def test_the_page_shows_the_numbers_of_the_runs_and_of_the_paper(window: Any, built: Path) -> None:
    show(window, built / "index.html", width=1400, scheme="light")
    rows = window.execute_script(
        "return [...document.querySelectorAll('#table-1 tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    (paper,) = (row for row in rows if row[0].startswith("IAAT,"))
    assert paper[1:] == ["87.26", "43.08", "41.16", "41.16", "59.87", "78.82"]
    (measured,) = (row for row in rows if row[0].startswith("IAAT\n"))
    assert measured[1].startswith("80.00")
    (never,) = (row for row in rows if row[0].startswith("TRADES"))
    assert all(cell.startswith("–") for cell in never[1:])
    text = window.find_element("css selector", "body").text
    assert "Not the paper’s setting" in text
    # A name with signs of HTML is text.
    assert "trades <b>&: not evaluated" in text


@pytest.mark.slow
def test_what_a_run_ran_on_is_on_the_page(built: Path) -> None:
    page = (built / "index.html").read_text()
    for fact in (
        "0123456789abcdef0123456789abcdef01234567",
        "a processor",
        "torch 2.13.0",
        "seed 0",
    ):
        assert fact in page
    assert "iaat_fast.train --method iaat" in page


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def quick(tmp_path: Path) -> RunFolder:
    """A run with a table and no figure of samples, quick to report."""
    folder = save_run(tmp_path / "quick", "clean", natural=None)
    save_record(folder, cifar_rows(0.9, 0.1, 40)[:3], samples=40)
    return folder


def test_only_what_a_report_wrote_is_replaced(tmp_path: Path, quick: RunFolder) -> None:
    out = tmp_path / "out"
    build_report([quick], out)
    (out / "figures").mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "figures" / "mine.png").write_text("mine too")
    first = contents(out)
    assert {"index.html", "tables/table-1.md"} <= set(first)
    # Another run, which has no Table 1: the old one goes, what is the user's stays.
    other = save_run(tmp_path / "other", "clean", natural=None)
    build_report([other], out)
    second = contents(out)
    assert set(second) == {"index.html", "report.json", "mine.txt", "figures/mine.png"}
    assert second["index.html"] != first["index.html"]
    assert second["mine.txt"] == b"mine"


def test_a_file_of_the_users_in_the_way_is_left_alone(tmp_path: Path, quick: RunFolder) -> None:
    out = tmp_path / "out"
    publish({"index.html": b"one"}, out, {})
    (out / "tables").mkdir()
    (out / "tables" / "table-1.md").write_text("mine")
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"table-1\.md: exists and no report wrote it"):
        build_report([quick], out)
    assert contents(out) == before


def test_a_manifest_that_names_files_elsewhere_deletes_none(tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious.txt"
    precious.write_text("keep")
    publish({"index.html": b"one"}, out, {})
    manifest = json.loads((out / "report.json").read_text())
    manifest["files"] += ["../precious.txt", str(precious)]
    (out / "report.json").write_text(json.dumps(manifest))
    publish({"index.html": b"two"}, out, {})
    assert precious.read_text() == "keep"
    assert (out / "index.html").read_bytes() == b"two"


def test_a_failed_write_leaves_the_old_page_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    publish({"index.html": b"one", "tables/table-1.md": b"1"}, out, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish({"index.html": b"two", "tables/table-1.md": b"2"}, out, {})
    monkeypatch.undo()
    assert (out / "index.html").read_bytes() == b"one"
    assert [path for path in out.rglob("*") if path.name.endswith(".tmp")] == []
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        publish({"index.html": b"one"}, tmp_path / "new", {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_runs_without_anything_to_show_are_still_listed(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None, epochs=0)
    build_report([folder], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "not evaluated" in page
    assert "training not finished, 0 of 12 epochs" in page
    assert "<table>" not in page


def test_the_command_writes_the_report_and_says_where(
    tmp_path: Path, quick: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(quick.path), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"1 table, 0 figures: {out / 'index.html'}\n"
    assert printed.err == ""


@pytest.mark.slow
def test_images_that_are_gone_are_a_warning_and_no_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.npz"
    folder = save_run(tmp_path / "a", "iaat", natural=None, epochs=3, data__path=str(gone))
    out = tmp_path / "out"
    assert main([str(folder.path), "--out", str(out)]) == 0
    err = capsys.readouterr().err
    assert (
        f"warning: Figures 2 and 6 of CIFAR-10, ResNet-18, width 4: not drawn, path {gone}" in err
    )
    assert str(gone) in (out / "index.html").read_text()


def test_bad_input_is_one_line_and_leaves_no_folder(
    tmp_path: Path, quick: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def error(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("python -m iaat_fast.report: error: ")
        assert printed.err.count("\n") == 1
        assert not out.exists()
        return printed.err

    assert "no such run folder" in error(tmp_path / "gone", "--out", out)
    assert "given twice" in error(quick.path, quick.path, "--out", out)
    assert "--data: belongs to a report" in error(quick.path, "--data", "x")
    assert "no evaluation of that name" in error(quick.path, "--out", out, "--evaluation", "no")
    other = save_run(tmp_path / "other", "adv", samples=20)
    assert "samples (40, 20)" in error(quick.path, other.path, "--out", out)
    (tmp_path / "file").write_text("")
    assert "expected a folder" in error(quick.path, "--out", tmp_path / "file")
    quick.metrics_path.write_text("[1]\n[2]\n")
    assert "metrics.jsonl: line 1" in error(quick.path, "--out", out)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    path = list(folder.epsilon_snapshots().values())[-1]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a readable snapshot")):
        build_report([folder], tmp_path / "out")


def test_without_jinja2_it_says_what_to_install(
    tmp_path: Path, quick: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main([str(quick.path), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'iaat-fast[train]'" in capsys.readouterr().err
