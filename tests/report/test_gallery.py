"""The gallery as a person uses it, in a browser, with mouse and with keyboard."""

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from test_likeness import screenshots

from e3jax import cli, operations
from e3jax.collection import reading
from e3jax.evidence.health import Health
from e3jax.evidence.model import Explanation
from e3jax.images import to_unit
from e3jax.report import decisions, gallery
from e3jax.report.ranking import Ranking
from e3jax.report.writing import write_tables

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Without them it asks the network for updates and lists of hosts.
QUIET = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
QUIET += " disable-component-update disable-sync"
K, N = 111, 60
NAMES = ["photos/two\nlines.png", "photos/b/é<b>.png", "photos/bytes\udcff.png"]
NAMES += [f"photos/{i}.png" for i in range(3, N)]


def ranking_of(paths, entropies, warning=""):
    """Images of these entropies; the seven most outlying but one are outliers."""
    scores = entropies.mean(axis=1)
    surprises = {"network": scores, "shape": 2 * scores}
    median, operation_set = np.median(entropies, axis=0), operations.operation_set()
    said = np.array(["PNG, most are JPEG" if i == 5 else "" for i in range(len(scores))], object)
    explanation = Explanation(
        entropies, median, len(operation_set), operation_set, "squash", surprises, {"shape": said}
    )
    health = Health(0.5, 1 / K, 0.1, 100, [], warning)
    alone = np.arange(len(entropies))
    return Ranking(paths, alone, scores, explanation, float(np.sort(scores)[-7]), [], health)


def entropies_of(n):
    random = np.random.default_rng(0)
    return random.uniform(0.5, 3, [n, 1]) + random.uniform(-0.4, 0.4, [n, K])


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": [f"--{flag}" for flag in QUIET.split()]}
        with contextlib.closing(playwright.chromium.launch(**options)) as found:
            yield found


@pytest.fixture
def open_page(browser):
    """Opens a page; in the end nobody may have complained or asked for anything else."""
    said, asked, contexts = [], [], []

    def open_file(path, **options):
        context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector(".tile img")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not said
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert sum(url.startswith("file") for url in asked) == len(contexts)


@pytest.fixture(scope="module")
def collection(digits, tmp_path_factory):
    """(gallery of files, their names in the order of the page, entropies in that order)."""
    folder = tmp_path_factory.mktemp("gallery")
    paths, entropies = [folder / name for name in NAMES], entropies_of(N)
    for path, digit in zip(paths, digits, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = reading.thumbnails(digit[None])[0]  # lossless
        path.write_bytes(content)
    paths = np.array([str(path) for path in paths])
    gallery.write_gallery(folder / "gallery.html", ranking_of(paths, entropies), title="Mine")
    order = np.argsort(-entropies.mean(axis=1))
    return folder / "gallery.html", paths[order], entropies[order], digits[order]


def names_shown(page):
    return page.locator(".tile .name").all_text_contents()


def until(page, expression, seconds=10):
    """Playwright's own waiting needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_it_opens_with_the_most_outlying_first(collection, open_page):
    page = open_page(collection[0])
    assert page.title() == "Mine" and page.locator("#warning").is_hidden()
    assert page.locator("#count").text_content().startswith("6 of 60 images (10.0 %)")
    labels = [tile.get_attribute("aria-label") for tile in page.locator(".tile").all()]
    scores = [float(re.search(r"score (\S+),", label)[1]) for label in labels]
    expected = collection[2].mean(axis=1)[: len(scores)]
    np.testing.assert_allclose(scores, expected, atol=6e-4)
    assert ["outlier" in label for label in labels] == [i < 6 for i in range(len(labels))]
    assert page.locator("#chart rect.out").count() and page.locator("#chart rect.in").count()


def test_the_threshold_moves_with_a_live_count(collection, open_page):
    page = open_page(collection[0])
    scores = collection[2].mean(axis=1)
    page.fill("#threshold", str(scores[19:21].mean()))
    assert page.locator("#count").text_content().startswith("20 of 60 images (33.3 %)")
    assert page.locator(".tile.marked").count() == min(20, page.locator(".tile").count())
    page.select_option("#show", "marked")
    assert page.locator("#shown").text_content() == "20 shown"
    page.focus("#threshold")
    page.keyboard.press("End")
    assert page.locator("#count").text_content().startswith("0 of 60 images")
    page.keyboard.press("Home")
    assert page.locator("#count").text_content().startswith("60 of 60 images")


def test_order_filter_and_what_is_shown(collection, open_page):
    page = open_page(collection[0])
    page.select_option("#order", "up")
    lowest = os.path.basename(collection[1][-1])
    assert names_shown(page)[0] == lowest
    page.select_option("#order", "name")
    assert names_shown(page)[:5] == ["3.png", "4.png", "5.png", "6.png", "7.png"]
    page.keyboard.press("/")
    page.keyboard.type("é<B")
    assert names_shown(page) == ["b/é<b>.png"]
    page.fill("#filter", "nothing has this name")
    assert names_shown(page) == []
    assert "change the filter" in page.locator("#shown").text_content()


def test_a_click_tells_why(collection, open_page):
    _, paths, entropies, digits = collection
    page = open_page(collection[0])
    page.click(".tile >> nth=1")
    page.wait_for_selector("#views canvas")
    assert f"rank 2 of {N}: outlier" in page.locator("#place").text_content()
    assert page.get_attribute("#link", "href").startswith("file:///")
    families = np.array(operations.operation_set().families)
    rows = [row.locator("td").all_text_contents() for row in page.locator("#families tr").all()]
    median = np.median(entropies, axis=0)
    for row, family in zip(rows, ["RA", "IA", "PR", None], strict=True):
        members = (families == family) | (family is None)
        here, usual = entropies[1][members].mean(), median[members].mean()
        # An entropy is kept as one of 256 steps from 0 to log k.
        assert float(row[0]) == pytest.approx(here, abs=0.015)
        assert float(row[1]) == pytest.approx(usual, abs=0.006)
    kinds, score = page.locator("#kinds tbody tr").all_text_contents(), entropies[1].mean()
    assert kinds == [
        f"unusual shape{100 * (1 - np.exp(-2 * score)):.1f} %",
        f"unusual views{100 * (1 - np.exp(-score)):.1f} %",
    ]
    assert page.locator(".tile .reason >> nth=1").text_content() == "unusual shape"
    rank = page.evaluate("items.indexOf(items.find(i => data.reasons['unusual shape'][i]))")
    assert page.locator(f".tile .reason >> nth={rank}").text_content() == "PNG, most are JPEG"
    assert page.locator("#profile rect").count() == K
    worst = np.argsort(-entropies[1])[:6]
    said = page.locator("#views figcaption div:first-child").all_text_contents()
    names = operations.operation_set().names
    quantised = np.round(entropies[1] * 255 / np.log(K))
    assert {name.replace("\u200b", "") for name in said} <= {
        names[o] for o in np.flatnonzero(quantised >= quantised[worst[-1]])
    }


def test_views_are_those_of_the_network(collection, open_page):
    page = open_page(collection[0])
    page.click(".tile >> nth=0")
    page.wait_for_selector("#views canvas")
    operation_set = operations.operation_set()
    # All operations, not only the six that confuse most.
    drawn = page.evaluate(
        """() => data.operations.map((_, o) => {
            const pixels = asSeen($("picture"));
            return [...tables.subarray(o * 1024, (o + 1) * 1024)].map(
                source => source < 1024 ? pixels[4 * source] : 128);
        })"""
    )
    views = operations.all_views(operation_set, to_unit(collection[3][:1]))
    expected = np.asarray((views[0, ..., 0] + 1) * 127.5).reshape(K, -1)
    gathers = np.array(operation_set.families) != "IA"
    np.testing.assert_allclose(np.array(drawn)[gathers], expected[gathers], atol=0.6)
    # Rotations take the nearest pixel instead of a spline.
    for ours, networks in zip(np.array(drawn)[~gathers], expected[~gathers], strict=True):
        assert np.corrcoef(ours, networks)[0, 1] > 0.85


def test_a_selection_is_saved_and_moved_by_quarantine(collection, open_page, tmp_path, capsys):
    page = open_page(collection[0])
    assert page.locator("#export").is_disabled()
    page.fill("#filter", ".png")
    page.select_option("#order", "name")
    wanted = [name for name in NAMES if not re.search(r"/\d+\.", name)]
    for text in ("two", "é", "bytes", "photos/"):
        page.fill("#filter", text)
        if text != "photos/":
            page.locator(".tile .tick").first.click()
    page.fill("#filter", "")
    page.click(".tile .tick >> nth=2")
    page.click(".tile .tick >> nth=2")  # and off again
    with page.expect_download() as download:
        page.click("#export")
    folder = collection[0].parent
    shutil.copytree(folder / "photos", tmp_path / "photos")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert len(text.splitlines()) == 3
    listing, report = tmp_path / "selection.txt", tmp_path / "report"
    listing.write_text(text.replace(str(folder), str(tmp_path)), encoding="utf-8")
    paths = np.array([path.replace(str(folder), str(tmp_path)) for path in collection[1]])
    write_tables(report, ranking_of(paths, entropies_of(N)))
    assert cli.main(["quarantine", str(report), "--list", str(listing)]) == 0
    assert not any((tmp_path / name).exists() for name in wanted)
    assert len(list((tmp_path / "photos").rglob("*.png"))) == N - 3
    assert cli.main(["quarantine", str(report), "--undo"]) == 0
    assert len(list((tmp_path / "photos").rglob("*.png"))) == N
    listing.write_text("/etc/passwd\n")
    assert cli.main(["quarantine", str(report), "--list", str(listing)]) == 2
    assert "/etc/passwd, which is not in" in capsys.readouterr().err


def test_everything_by_keyboard(collection, open_page):
    page = open_page(collection[0])
    paths = [os.path.basename(path) for path in collection[1]]
    page.focus(".tile[tabindex='0']")
    across = page.evaluate("columns()")
    for key, at in [("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across)]:
        page.keyboard.press(key)
        assert paths[at] in focused(page) or at < 0
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator(".tile[aria-selected=true]").count() == 2
    page.keyboard.press("End")
    assert paths[-1] in focused(page)
    page.keyboard.press("Home")
    assert paths[0] in focused(page)
    page.keyboard.press("Enter")
    assert page.locator("#why").is_visible()
    page.keyboard.press("ArrowRight")
    assert "rank 2 of" in page.locator("#place").text_content()
    page.keyboard.press("Escape")
    until(page, "document.activeElement.at === 1")
    assert page.locator("#why").is_hidden() and paths[1] in focused(page)
    page.click("#mark")
    assert page.locator("#export").text_content() == "Save selection (6)"
    page.select_option("#show", "selected")
    assert page.locator(".tile").count() == 6
    page.click("#clear")
    assert page.locator("#export").is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_light_and_dark(collection, open_page, scheme):
    page = open_page(collection[0], color_scheme=scheme)
    page.click(".tile .tick >> nth=0")
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(255, 255, 255)",
            "dark": "rgb(22, 24, 28)",
        }[scheme]
    )
    for opened in (False, True):
        if opened:
            page.click(".tile >> nth=1")
            page.wait_for_selector("#views canvas")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="module")
def large(mnist, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "gallery.html"
    entropies = entropies_of(10_000)
    pictures = np.concatenate([mnist.images, mnist.images])
    gallery.write_gallery(path, ranking_of(None, entropies, warning="Hm."), pictures)
    return path


@pytest.mark.nightly
def test_ten_thousand_images_open_within_three_seconds(large, open_page):
    began = time.monotonic()
    page = open_page(large)
    assert time.monotonic() - began < 3
    assert page.locator("#warning").text_content() == "Hm."
    assert page.locator(".tile").count() < 150
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("End")
    until(page, "tiles.get(9999) && tiles.get(9999).getBoundingClientRect().top < 800")
    assert page.locator(".tile").count() < 150
    page.mouse.wheel(0, -2000)
    until(page, "!tiles.has(9990) && tiles.size > 20")
    page.fill("#threshold", "2")
    page.click("#mark")
    marked = int(page.locator("#count").text_content().split()[0].replace(",", ""))
    assert f"({marked:,})" in page.locator("#export").text_content()


def test_more_than_it_shows_is_said(digits, open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_MOST", 50)
    entropies = entropies_of(N)
    path = tmp_path / "gallery.html"
    gallery.write_gallery(path, ranking_of(None, entropies), digits)
    page = open_page(path)
    assert page.locator("#part").text_content() == "The 50 most outlying are shown."
    assert "6 of 60 images" in page.locator("#count").text_content()


def test_what_does_not_fit_together_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="60 pictures, expected 10"):
        ranking = ranking_of(None, entropies_of(10))
        gallery.write_gallery(tmp_path / "g.html", ranking, digits)
    with pytest.raises(ValueError, match="not finite: training diverged"):
        ranking = ranking_of(None, entropies_of(N) * np.nan)
        gallery.write_gallery(tmp_path / "g.html", ranking, digits)
    assert not list(tmp_path.iterdir())


def test_copies_stand_together_and_are_counted(digits, open_page, tmp_path):
    entropies = entropies_of(N)
    found = ranking_of(np.arange(N), entropies)
    first, last = found.order[0], found.order[-1]
    copy_of = np.arange(N)
    copy_of[max(first, last)] = min(first, last)
    gallery.write_gallery(tmp_path / "g.html", found._replace(copy_of=copy_of), digits)
    page = open_page(tmp_path / "g.html")
    tiles = page.locator(".tile")
    assert [tiles.nth(i).locator(".name").inner_text() for i in range(2)] == [str(first), str(last)]
    assert tiles.nth(1).locator(".reason").inner_text() == "one of 2 copies"
    assert "copies" not in tiles.nth(2).locator(".reason").inner_text()
    page.locator("#order").select_option("up")
    assert tiles.nth(0).locator(".name").inner_text() == str(found.order[-2])


def saved_decisions(page):
    with page.expect_download() as download:
        page.click("#keep")
    assert download.value.suggested_filename == "decisions.csv"
    return download.value.path()


def test_thirty_screenshots_are_one_decision(digits, open_page, tmp_path):
    pictures = np.concatenate([screenshots(30), np.repeat(digits[:30], 3, axis=-1)])
    ranked = ranking_of(np.arange(N), np.sort(entropies_of(N), axis=0)[::-1])
    ranked = ranked._replace(threshold=ranked.scores[31:33].mean())
    gallery.write_gallery(tmp_path / "g.html", ranked, pictures)
    page = open_page(tmp_path / "g.html")
    page.select_option("#view", "groups")
    heads = page.evaluate("sections.map(section => section.name)")
    assert heads == ["Group 1 of 1: 30 alike", "2 others, each by itself"]
    assert page.locator(".head button").count() == 2 and page.locator("#keep").is_disabled()
    page.click(".head button.no")
    assert page.locator("#decided").text_content() == "30 decided: 0 belong, 30 do not"
    assert page.locator("#shown").text_content() == "32 shown"
    page.fill("#threshold", "-1")
    assert page.locator("#count").text_content().startswith("60 of 60")
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("b")
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator("#decided").text_content() == "30 decided: 1 belong, 29 do not"
    numbers = decisions.for_images(saved_decisions(page), np.arange(N))
    assert numbers.tolist() == [1] + 29 * [-1] + 30 * [0]
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("Shift+B")  # two are selected, the first belongs already
    assert page.locator("#decided").text_content() == "30 decided: 2 belong, 28 do not"
    page.click("#clear")
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("Shift+D")
    assert page.locator("#decided").text_content() == "30 decided: 0 belong, 30 do not"
    page.keyboard.press("Shift+D")
    assert page.locator("#decided").text_content() == ""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_decisions_about_one_picture(collection, open_page):
    page, paths = open_page(collection[0]), collection[1]
    page.click(".tile .no >> nth=9")
    page.click(".tile .yes >> nth=0")
    assert page.locator("#count").text_content().startswith("6 of 60 images (10.0 %) are outliers")
    assert "by your decisions, or score above" in page.locator("#count").text_content()
    page.focus(".tile[tabindex='0']")
    assert "decided: belongs" in focused(page)
    page.keyboard.press("Enter")
    assert page.get_attribute("#whyyes", "aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("d")
    page.click("#next")
    page.click("#whyyes")
    page.click("#whyyes")  # and back
    page.keyboard.press("Escape")
    assert page.locator("#decided").text_content() == "3 decided: 1 belong, 2 do not"
    page.select_option("#show", "no")
    assert names_shown(page) == [os.path.basename(paths[i]) for i in (1, 9)]
    page.click("#mark")
    assert page.locator("#export").text_content() == "Save selection (6)"
    page.click("#no")
    expected = {paths[i]: "does not belong" for i in (1, 2, 3, 4, 5, 9)} | {paths[0]: "belongs"}
    assert decisions.read(saved_decisions(page)) == expected


def test_decisions_of_odd_names_are_saved_and_open_in_place(collection, open_page, tmp_path):
    page, paths = open_page(collection[0]), collection[1]
    odd = [str(collection[0].parent / name) for name in NAMES[:3]]
    for name in ("two", "é", "bytes"):
        page.fill("#filter", name)
        page.locator(".tile .no").first.click()
    saved = saved_decisions(page)
    assert decisions.read(saved) == dict.fromkeys(odd, "does not belong")
    assert sorted(decisions.read_junk(saved)) == sorted(odd)
    decided = decisions.for_images(saved, paths)
    ranked = ranking_of(paths, collection[2])._replace(decisions=decided)
    gallery.write_gallery(tmp_path / "again.html", ranked)
    again = open_page(tmp_path / "again.html")
    assert again.locator("#decided").text_content() == "3 decided: 0 belong, 3 do not"
    assert decisions.read(saved_decisions(again)) == dict.fromkeys(odd, "does not belong")


def test_what_belongs_is_shown_however_many_there_are(digits, open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_MOST", 20)
    ranked = ranking_of(np.arange(N), entropies_of(N))
    decided = np.zeros(N, np.int8)
    decided[ranked.order[-2:]] = 1
    gallery.write_gallery(tmp_path / "g.html", ranked._replace(decisions=decided), digits)
    page = open_page(tmp_path / "g.html")
    label = page.locator(".tile").last.get_attribute("aria-label")
    last = ranked.order[-1]
    assert label == f"{last}, score {ranked.scores[last]:.3f}, decided: belongs"
    page.click(".tile img >> nth=19")
    assert "rank 60 of 60" in page.locator("#place").text_content()
    np.testing.assert_array_equal(
        decisions.for_images(saved_from_dialog(page), np.arange(N)), decided
    )


def saved_from_dialog(page):
    page.keyboard.press("Escape")
    return saved_decisions(page)


def test_turned_copies_have_a_view(digits, open_page, tmp_path):
    pictures = digits.copy()
    pictures[8], pictures[30] = np.rot90(digits[4]), digits[4, :, ::-1]
    ranked = ranking_of(np.arange(N), entropies_of(N))
    gallery.write_gallery(tmp_path / "g.html", ranked, pictures)
    page = open_page(tmp_path / "g.html")
    page.select_option("#view", "copy_of")
    assert page.locator(".head strong").all_text_contents() == ["Group 1 of 1: 3 copies"]
    assert sorted(names_shown(page)) == ["30", "4", "8"]
    page.fill("#filter", "nothing")
    assert page.locator("#shown").text_content() == "No copies are left"


def test_evidence_orders_and_neighbours_stand_beside(collection, open_page):
    page, paths = open_page(collection[0]), collection[1]
    orders = page.locator("#order option").all_text_contents()
    assert orders[3:] == ["unusual views first", "unusual shape first"]
    page.select_option("#order", "name")
    page.select_option("#order", "unusual shape first")
    assert names_shown(page)[:3] == [os.path.basename(path) for path in paths[:3]]
    page.click(".tile img >> nth=0")
    near = [image.get_attribute("title") for image in page.locator("#nearest img").all()]
    usual = {os.path.basename(path) for path in paths[6:]}
    assert len(near) == 3 and {os.path.basename(name) for name in near} <= usual
    page.keyboard.press("Escape")
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.locator("#near").is_hidden()  # it is ordinary itself
