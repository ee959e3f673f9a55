"""The page's files: small, served as they are, and nothing from elsewhere."""

import re

import pytest

from server.http.page_files import FOLDER, INDEX, MEDIA_TYPES, page_routes
from tests.server.in_process import Site

FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
MAX_BYTES = 50_000  # of all of them


def test_all_files_together_are_small_on_the_wire():
    site, sizes = Site(), []
    for path in FILES:
        answer = site.get("/" if path == INDEX else f"/page/{path.name}", {"accept-encoding": "br, gzip;q=0.5"})
        assert answer.headers["content-encoding"] == "gzip" and answer.content == path.read_bytes()
        sizes.append(int(answer.headers["content-length"]))
    assert sum(sizes) <= MAX_BYTES


@pytest.mark.parametrize("accept", ["", "identity", "br", "gzip;q=0", "gzip; q=0.0", "gzipped", "deflate, *;q=0"])
def test_who_does_not_take_gzip_gets_the_file_itself(accept: str):
    plain = Site().get("/page/main.mjs", {"accept-encoding": accept})
    assert "content-encoding" not in plain.headers and plain.headers["vary"] == "Accept-Encoding"
    assert plain.content == (FOLDER / "main.mjs").read_bytes()
    packed = Site().get("/page/main.mjs", {"accept-encoding": "gzip"})
    assert packed.headers["etag"] != plain.headers["etag"], "a cache must not take one for the other"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_served_as_it_is_without_a_key(path):
    site = Site(api_keys=("of-sixteen-characters",))
    answer = site.get("/" if path == INDEX else f"/page/{path.name}")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"] == MEDIA_TYPES[path.suffix]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy


@pytest.mark.parametrize(
    ("known", "status"),
    [("TAG", 304), ('"x", W/TAG', 304), ("*", 304), ('"x"', 200), ("", 200), ("TAGx", 200)],
)
def test_a_file_that_a_browser_has_is_not_sent_again(known: str, status: int):
    site = Site()
    whole = site.get("/page/main.mjs")
    answer = site.get("/page/main.mjs", {"if-none-match": known.replace("TAG", whole.headers["etag"])})
    assert (answer.status_code, answer.content) == (status, whole.content if status == 200 else b"")
    assert answer.headers["etag"] == whole.headers["etag"] != site.get("/").headers["etag"]
    assert answer.headers["content-security-policy"] == whole.headers["content-security-policy"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_loads_nothing_from_elsewhere_and_holds_nothing_inline(path):
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(src|href|from|import)\s*[=(]?\s*[\"'](https?:)?//", text)
    if path == INDEX:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_the_page_names_every_module_so_that_none_waits_for_another():
    named = set(re.findall(r"href=\"page/(\w+\.mjs)\"|src=\"page/(\w+\.mjs)\"", INDEX.read_text("utf-8")))
    assert {first or second for first, second in named} == {path.name for path in FILES if path.suffix == ".mjs"}


def test_the_files_are_no_part_of_the_document():
    paths = Site().get("/openapi.json").json()["paths"]
    assert "/" in paths and not [path for path in paths if path.startswith("/page")] and page_routes()
