"""The page in headless Chromium: what a user does, and what is there then."""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.conditions import guidance_weight
from fewstep.pixels import KEYWORD, encode, text_of
from tests.server.conftest import ROOT, Server, serving, wait_until, write_engine
from tests.server.live import live
from tests.server.page.browser import NEEDS_BROWSER, Browser, browsing
from tests.server.test_adapters import write_adapters

pytestmark = NEEDS_BROWSER
ENGINE = ROOT / "models" / "fashion" / "engine"
MAP_DONE = "((busy) => busy.max > 1 && busy.value === busy.max)(document.getElementById('map-busy'))"
FINISHED = ".tile:not(.pending)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser") / "window") as window:
        window.look()
        yield window


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of fashion, and of a model that takes a guidance weight."""
    guided = tmp_path_factory.mktemp("models") / "guided"
    write_engine(guided, "guided", conditions=(guidance_weight(4.0),))
    with serving(ENGINE, "--engine", f"guided={guided}", "--mode", "exact", "--capacity", "2") as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Browser]:
    """With two images of seed 7, which were there when it was opened."""
    visit(browser, server, "?seed=7&keep=1&n=2&steps=2")
    yield browser
    assert browser.errors() == []


def visit(browser: Browser, server: Server, address: str = "") -> None:
    browser.open(f"{server.url}/{address}")
    browser.until("document.querySelector('#history .batch')")
    browser.done()


def pictures(page: Browser, batch: int = 1, part: str = ".tile") -> list[bytes]:
    """The PNGs of the tiles of a batch, the newest batch being 1, or of another part of it."""
    sources = page.run(
        "return [...document.querySelectorAll(`.batch:nth-child(${arguments[0]}) ${arguments[1]} img`)]"
        ".map((img) => img.src)", batch, part,
    )  # fmt: skip
    return [base64.b64decode(source.partition(",")[2]) for source in sources]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_a_link_is_its_images_and_nothing_made_is_lost(page: Browser):
    assert page.run("return ['seed', 'count', 'steps'].map((id) => document.getElementById(id).value)") == [
        "7",
        "2",
        "2",
    ]
    first = pictures(page)
    assert page.run("return [...document.querySelectorAll('.seed')].map((each) => each.innerText)") == ["7", "8"]
    page.click("#fresh")
    page.press("Control", "Enter")
    page.until("document.querySelectorAll('.batch').length === 2")
    page.done()
    drawn = page.run("return document.getElementById('seed').value")
    assert f"seed={drawn}" in page.run("return location.search") and drawn != "7"
    assert pictures(page, 2) == first and pictures(page) != first
    page.click(".batch:nth-child(2) .tile:nth-child(2) .seed")  # seed 8: it comes back into the form, and stays
    page.click("#go")
    page.until("document.querySelectorAll('.batch').length === 3")
    page.done()
    assert pictures(page)[0] == first[1]


def test_a_strip_is_one_seed_with_four_step_counts(page: Browser):
    page.click("#view-strip + span")
    page.click("#go")
    page.until("document.querySelectorAll('.strip .tile:not(.pending)').length === 4")
    page.done()
    times = page.run("return [...document.querySelectorAll('.strip small')].map((each) => each.innerText)")
    assert len(times) == 4 and all(each.endswith(("ms", " s")) for each in times)
    assert (
        page.run("return new Set([...document.querySelectorAll('.strip .seed')].map((each) => each.innerText)).size")
        == 1
    )


def weights_of(page: Browser, batch: int = 1) -> list[float | None]:
    """What the PNGs of a batch say of guidance."""
    return [json.loads(text_of(png, KEYWORD) or "").get("guidance") for png in pictures(page, batch)]


def test_guidance_is_offered_where_a_model_takes_it_and_stays_with_its_images(page: Browser, server: Server):
    assert page.run("return document.getElementById('guidance-field').hidden"), "fashion takes none"
    visit(page, server, "?model=guided&seed=7&keep=1&n=2&steps=2&guidance=2.5")
    assert weights_of(page) == [2.5, 2.5] and page.text("#guidance-now") == "2.5"
    assert "guidance 2.5" in page.text(".batch h2") and "guidance 2.5" in page.run(
        "return document.querySelector('.tile img').alt"
    )
    page.run("document.getElementById('guidance').focus()")
    page.press("Right")
    assert page.text("#guidance-now") == "2.6"
    page.click("#view-strip + span")
    page.click("#go")
    page.until("document.querySelectorAll('.strip .tile:not(.pending)').length === 4")
    page.done()
    assert weights_of(page) == [2.6] * 4 and "guidance=2.6" in page.run("return location.search")
    page.click(".batch:nth-child(2) .head button")  # use these settings
    assert page.run("return document.getElementById('guidance').value") == "2.5"
    page.click("#copy button")
    page.until("!document.querySelector('#copy pre').hidden")
    assert '"guidance": 2.5' in page.text("#copy pre")
    page.run("const slider = document.getElementById('guidance'); slider.value = 1;"
             "slider.dispatchEvent(new Event('input', { bubbles: true }))")  # fmt: skip
    page.click("#go")
    page.until("document.querySelectorAll('.batch').length === 3")
    page.done()
    assert weights_of(page) == [None, None] and "guidance" not in page.run("return location.search")


def test_an_animation_goes_from_one_seed_to_the_other(page: Browser):
    ends = pictures(page)
    page.click("#view-between + span")
    page.fill("#seed-to", "8")
    page.fill("#count", "3")
    page.run("document.getElementById('label').value = document.querySelector('.name').innerText")
    page.click("#go")
    page.until("document.querySelectorAll('.film .tile:not(.pending)').length === 3")
    page.done()
    frames = [pixels(png) for png in pictures(page)]
    assert (frames[0] == pixels(ends[0])).all() and not (frames[1] == frames[0]).all()
    page.click(".player button")  # it has been playing
    assert page.text(".player button") == "Play"
    page.run(
        "const frame = document.querySelector('.player input');frame.value = 2; frame.dispatchEvent(new Event('input'))"
    )
    assert page.run(
        "return document.querySelector('.player img').src === document.querySelectorAll('.film .tile img')[2].src"
    )


def window(page: Browser) -> list[int]:
    """What the map shows in its upper left, whatever the width that a scroll bar leaves."""
    return page.run("return [...document.getElementById('map').getContext('2d').getImageData(0, 0, 150, 100).data]")


def test_a_world_is_the_same_when_one_comes_back(page: Browser, server: Server):
    page.click("#view-map + span")
    page.until(MAP_DONE)
    seen = window(page)
    page.run("document.getElementById('map').focus()")
    page.press("Right")
    page.until("location.search.includes('x=') && !location.search.includes('x=0')")
    page.until(MAP_DONE)
    moved, address, said = window(page), page.run("return location.search"), page.text("#map-said")
    page.open(f"{server.url}/{address}")
    page.until(MAP_DONE)
    assert window(page) == moved != seen
    assert page.text("#map-said").partition(" at ")[2] == said.partition(" at ")[2]
    page.run("document.getElementById('map').focus()")
    page.press("Left")
    page.until("/ at 0, 0$/.test(document.getElementById('map-said').innerText)")
    page.until(MAP_DONE)
    assert window(page) == seen


def test_a_part_is_painted_by_keys_undone_and_repainted(page: Browser):
    before = pixels(pictures(page)[0])
    page.click(".tile .own button")
    page.until("document.activeElement.id === 'canvas'")
    page.press(" ")
    page.press("Shift", "Down")
    page.press("Shift", "Right")
    assert page.text("#canvas-said").startswith("Brush down at 20, 20; ")
    page.press("Control", "z")
    assert page.run("return document.getElementById('repaint').disabled")
    page.click("#half")
    assert page.run("return document.getElementById('strength').value") == "1"
    page.click("#repaint")
    page.until("document.querySelectorAll('.batch').length === 2")
    page.done()
    made = [pixels(png) for png in pictures(page)]
    assert all((each[:16] == before[:16]).all() and not (each[16:] == before[16:]).all() for each in made)
    assert len(made) == 2 and page.count(".batch:nth-child(2) .tile") == 2
    page.run("document.getElementById('canvas').focus()")
    page.press("Escape")
    assert page.run("return [document.getElementById('editor').hidden, document.activeElement.innerText]") == [
        True,
        "Edit",
    ]


def answered(page: Browser) -> None:
    """A measurement painted by keys, and its sixteen answers."""
    page.click("#measure")
    page.until("document.activeElement.id === 'canvas'")
    assert page.run("return document.getElementById('answers').disabled"), "nothing is known yet"
    page.press(" ")
    page.press("Shift", "Down")
    page.press("Shift", "Right")
    page.click("#answers")
    page.until("document.querySelectorAll('.film .tile:not(.pending) .seed').length === 16")
    page.done()
    page.until("document.querySelector('.summary .scale')")


def test_a_measurement_has_sixteen_answers_their_mean_and_their_spread(page: Browser):
    page.run("window.asked = []; const real = fetch; window.fetch = (path, options) => "
             "{ if (options?.body) asked.push(JSON.parse(options.body)); return real(path, options); }")  # fmt: skip
    answered(page)
    asked = page.run("return asked")
    assert [(body["n"], body["strength"], "label" in body) for body in asked] == [(16, 1, False)], "one request"
    answers = np.stack([pixels(png) for png in pictures(page)]).astype(float)
    assert answers.shape[0] == 16
    mean, spread, _ = (pixels(png) for png in pictures(page, part=".summary"))
    assert np.abs(mean - answers.mean(axis=0)).max() <= 0.51
    deviations = answers.std(axis=0, ddof=1)
    known = pixels(base64.b64decode(asked[0]["mask"])) == 0
    assert (answers[:, known] == 255).all() and 20 < known.sum() < 200 and (spread[known] == spread.min()).all()
    assert page.text(".summary .key").split() == ["0", f"{deviations.max():.1f}", "of", "255"]
    order = deviations[~known].argsort()
    assert (np.diff(spread[~known][order].astype(int)) >= -1).all(), "lighter is more"
    page.run("document.getElementById('canvas').focus()")
    page.press("Escape")
    assert page.run("return document.activeElement.id") == "measure"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Wider than high, in colour."""
    levels = np.random.default_rng(3).integers(0, 256, (60, 90, 3), np.uint8)
    path = tmp_path / "mine.png"
    path.write_bytes(encode(levels, "png"))
    return path


def given(page: Browser, kind: str, target: str, path: Path) -> None:
    """A file dropped on or pasted into an element."""
    page.run(
        """const [kind, target, encoded] = arguments, data = new DataTransfer();
        const bytes = Uint8Array.from(atob(encoded), (each) => each.charCodeAt(0));
        data.items.add(new File([bytes], "given.png", { type: "image/png" }));
        document.querySelector(target).dispatchEvent(kind === "drop"
          ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
          : new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));""",
        kind, target, base64.b64encode(path.read_bytes()).decode(),
    )  # fmt: skip


@pytest.mark.parametrize("way", ["upload", "drop", "paste"])
def test_a_picture_and_a_mask_of_ones_own(page: Browser, picture: Path, tmp_path: Path, way: str):
    mask = tmp_path / "mask.png"
    lower = np.zeros((64, 64, 1), np.uint8)
    lower[32:] = 255
    mask.write_bytes(encode(lower, "png"))
    if way == "upload":
        page.upload("#file", picture)
    else:
        given(page, way, "#history", picture)
    page.until("!document.getElementById('editor').hidden")
    if way == "upload":
        page.upload("#mask-file", mask)
    else:
        given(page, way, "#canvas", mask)
    page.until("!document.getElementById('repaint').disabled")
    page.click("#repaint")
    page.until("document.querySelectorAll('.batch').length === 2")
    page.done()
    first, second = (pixels(png) for png in pictures(page))
    assert (first[:16] == second[:16]).all() and not (first[16:] == second[16:]).all()
    assert abs(first[:16].astype(int).mean() - 127) < 20, "the noise of the picture, made small and gray"


def test_what_is_no_picture_is_said(page: Browser, tmp_path: Path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture", "utf-8")
    page.upload("#file", path)
    page.until("!document.getElementById('error').hidden")
    assert page.text("#error") == "“notes.png” is not a picture that this browser can read."
    assert page.run("return document.getElementById('editor').hidden")


def test_all_images_are_downloaded_as_a_zip(page: Browser):
    page.click(".batch .head button:nth-child(2)")
    path = page.downloads / "fewstep-7.zip"
    wait_until(path.exists)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == dict(
            zip(["fashion-7-2-steps.png", "fashion-8-2-steps.png"], pictures(page), strict=True)
        )


def test_an_image_is_enlarged_and_copied_as_a_program(page: Browser):
    page.click(".tile .view")
    page.press("Right")
    assert "seed 8" in page.text("#viewer-title") and page.text("#viewer-place") == "2 of 2"
    page.click("#viewer-copy button:nth-child(2)")
    page.until("!document.querySelector('#viewer-copy pre').hidden")
    program = page.text("#viewer-copy pre")
    assert '"seed": 8' in program and '"n"' not in program and program.startswith("import urllib.request")
    page.press("Escape")
    assert page.run("return document.getElementById('viewer').open") is False
    page.click(".tile .view")
    page.click("#viewer-reuse")
    assert page.run("return [document.activeElement.id, document.activeElement.value]") == ["seed", "7"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("count", "0", "Images: a whole number from 1 to 64. Not 0."),
        ("count", "", "Images: a whole number from 1 to 64. The field is empty."),
        ("seed", "-1", "Seed: a whole number from 0 to 9223372036854775807. Not “-1”."),
        ("seed", str(2**63 - 1), "With 2 images the seed is at most 9223372036854775806: each image has the next one."),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_labels(page: Browser, field: str, value: str, said: str):
    page.fill(f"#{field}", value)
    page.click("#go")
    assert page.text("#error") == said
    assert page.run("return [document.activeElement.id, document.activeElement.getAttribute('aria-invalid')]") == [
        field,
        "true",
    ]
    assert page.count(".batch") == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("?class=Hat", "fashion has no class “Hat”."),
        ("?model=faces", "There is no model “faces” here; this is fashion."),
        ("?guidance=2", "fashion takes no guidance."),
        ("?model=guided&guidance=4.1", "guided takes guidance from 1 to 4 in steps of 0.1, not 4.1."),
        ("?model=guided&guidance=2.55", "guided takes guidance from 1 to 4 in steps of 0.1, not 2.55."),
    ],
)
def test_a_link_to_what_is_not_there_says_so(page: Browser, server: Server, address: str, said: str):
    page.open(f"{server.url}/{address}")
    page.until("!document.getElementById('error').hidden")
    assert (page.text("#error"), page.count(".batch")) == (said, 0)


def test_tiles_wait_are_cancelled_and_leave_the_servers_slots(browser: Browser, tmp_path: Path):
    with live(tmp_path, "--capacity", "2") as running:
        visit(browser, running.server, "?seed=7&keep=1&n=1&steps=2")
        running.plan(calls=0)
        browser.fill("#count", "3")
        browser.click("#go")
        running.admitted(3)
        browser.until("document.querySelectorAll('.tile.pending').length === 3")
        assert browser.text("#status") == "0 of 3 images"
        browser.press("Escape")
        assert browser.text("#status") == "Cancelled. What was finished stays."
        running.plan()
        running.idle()
        assert (browser.count(".batch"), browser.count(FINISHED)) == (1, 1), "a batch without an image leaves nothing"
        browser.click("#go")
        browser.until("document.querySelectorAll('.tile:not(.pending)').length === 4")
        browser.done()
        running.server.process.kill()
        wait_until(lambda: running.server.process.poll() is not None)
        for child in running.server.children() if running.server.process.poll() is None else running.server.family:
            child.kill()
        browser.click("#go")
        browser.until("!document.getElementById('error').hidden")
        assert browser.text("#error") == "The server does not answer. Is it still running?"
        assert browser.count(FINISHED) == 4
    browser.errors()  # the console has the broken connections


def test_a_key_is_asked_for_and_several_models_are_offered(browser: Browser, tmp_path: Path):
    keys, other = tmp_path / "keys.txt", tmp_path / "other"
    write_adapters(other)
    keys.write_text("of-sixteen-characters\n", "utf-8")
    with serving(ENGINE, "--engine", f"other={other}", "--api-keys-file", str(keys)) as server:
        browser.open(server.url)
        browser.until("!document.getElementById('error').hidden")
        assert browser.text("#error") == "This server asks for an API key."
        assert browser.run("return document.activeElement.id") == "key"
        browser.fill("#key", "wrong")
        browser.click("#go")
        browser.until("document.getElementById('error').innerText.includes('does not know')")
        browser.fill("#key", "of-sixteen-characters")
        browser.press("Enter")
        browser.until("document.querySelectorAll('.tile:not(.pending)').length === 12")
        browser.done()
        assert browser.run("return [...document.querySelectorAll('#model option')].map((each) => each.innerText)") == [
            "fashion", "other", "other:red (posterior)", "other:blue (posterior)",
        ]  # fmt: skip
        browser.run(
            "const model = document.getElementById('model');"
            "model.value = 'other:red'; model.dispatchEvent(new Event('change'))"
        )
        assert "8 gray images" in browser.text("#about")
        browser.click("#go")
        browser.until("document.querySelectorAll('.tile:not(.pending)').length === 24")
        browser.done()
    browser.errors()


State = Callable[[Browser], None]


def edited(page: Browser) -> None:
    page.click(".tile .own button")
    page.until("!document.getElementById('editor').hidden")
    page.click("#half")


def enlarged(page: Browser) -> None:
    page.click(".tile .view")
    page.click("#viewer-copy button")
    page.until("!document.querySelector('#viewer-copy pre').hidden")


def refused(page: Browser) -> None:
    page.fill("#count", "0")
    page.click("#go")


def mapped(page: Browser) -> None:
    page.click("#view-map + span")
    page.until(MAP_DONE)


def stripped(page: Browser) -> None:
    page.click("#view-strip + span")
    page.click("#go")
    page.until("document.querySelectorAll('.strip .tile:not(.pending)').length === 4")


def animated(page: Browser) -> None:
    page.click("#view-between + span")
    page.click("#go")
    page.until("document.querySelectorAll('.film .tile:not(.pending)').length === 2")


def guided(page: Browser) -> None:
    page.run(
        "const model = document.getElementById('model');"
        "model.value = 'guided'; model.dispatchEvent(new Event('change'))"
    )
    page.click("#guidance")  # its middle
    page.click("#go")
    page.until("document.querySelectorAll('.tile:not(.pending)').length === 4")


STATES: dict[str, State] = {
    "images": lambda page: None, "guided": guided, "strip": stripped, "between": animated, "map": mapped,
    "editor": edited, "enlarged": enlarged, "refused": refused, "answers": answered,
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(page: Browser, axe: str, state: str):
    STATES[state](page)
    page.done()
    for dark in (False, True):
        for width, height in ((1280, 900), (390, 844)):
            page.look(dark=dark, width=width, height=height)
            page.run(axe)
            found = page.run(
                "return axe.run().then(({ violations }) => violations.map((each) => [each.id, each.nodes[0].html]))"
            )
            assert found == [], f"dark {dark}, {width} pixels wide"
            wide = page.run("return document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} pixels of content in a window of {width}"
    page.look()
