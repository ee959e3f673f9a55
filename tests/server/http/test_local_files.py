"""Files for images made in the browser: only where the setting names a folder, and networks with a key."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.http.local_files import MODULES, in_browser, local_routes
from server.settings.settings import RUNTIME_FILES, Settings, SettingsError, check_runtime
from tests.server.fakes import manifest
from tests.server.in_process import Site

KEY = "of-sixteen-characters"
NETWORK = "/page/networks/tiny.onnx"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder with files of the right names."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in RUNTIME_FILES:
        (folder / name).write_bytes(name.encode() * 20_000)  # more than one piece of a body
    return folder


@pytest.fixture
def settings(runtime: Path, tmp_path: Path) -> Settings:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "network.onnx").write_bytes(b"onnx" * 50_000)
    return Settings({"tiny": engine}, page_runtime=str(runtime))


def site(settings: Settings) -> Site:
    return Site(api_keys=(KEY,), more=local_routes({"tiny": manifest("tiny")}, settings))


@pytest.mark.parametrize("name", RUNTIME_FILES)
def test_the_runtime_is_sent_as_it_is_and_once(name: str, settings: Settings, runtime: Path):
    running, path = site(settings), f"/page/runtime/{name}"
    answer = running.get(path)
    assert (answer.status_code, answer.content) == (200, (runtime / name).read_bytes())
    kind = "application/wasm" if name.endswith(".wasm") else "text/javascript; charset=utf-8"
    assert answer.headers["content-type"] == kind and answer.headers["x-content-type-options"] == "nosniff"
    again = running.get(path, {"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_network_needs_the_key_and_its_tag_is_its_hash(settings: Settings):
    running = site(settings)
    assert running.get(NETWORK).status_code == 401
    answer = running.get(NETWORK, {"x-api-key": KEY})
    assert (answer.status_code, answer.content) == (200, b"onnx" * 50_000)
    assert answer.headers["etag"] == f'"{manifest("tiny").network_sha256[:16]}"'
    assert running.get("/page/networks/other.onnx", {"x-api-key": KEY}).status_code == 404


def test_our_modules_for_it_are_sent_without_a_key(settings: Settings):
    running, modules = site(settings), sorted(MODULES.glob("*.mjs"))
    assert [path.name for path in modules] == ["generate.mjs", "philox.mjs", "runtime.mjs", "student.mjs"]
    assert [running.get(f"/page/local/{path.name}").content for path in modules] == [p.read_bytes() for p in modules]


def test_the_policy_of_the_page_has_one_word_more_and_only_then(runtime: Path):
    before, after = (running.get("/").headers for running in (Site(), Site(page_runtime=str(runtime))))
    assert before["etag"] != after["etag"], "else a browser would keep the policy it has"
    usual, more = before["content-security-policy"], after["content-security-policy"]
    assert more == usual.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'") != usual
    for path in (f"/page/runtime/{RUNTIME_FILES[0]}", "/page/local/generate.mjs", NETWORK):
        assert Site().get(path).status_code == 404


def test_a_model_says_what_a_page_needs_where_it_can_run_it(settings: Settings):
    tiny = manifest("tiny")
    expected = {"network": NETWORK[1:], "bytes": 200_000, "sigma_data": tiny.sigma_data}
    assert in_browser("tiny", tiny, settings) == expected
    assert Site().get("/v1/models").json()["data"][0]["browser"] is None
    for other in (replace(tiny, extra=1), replace(tiny, dtype="float16"), replace(tiny, network="absent.onnx")):
        assert in_browser("tiny", other, settings) is None


def test_too_large_a_network_is_not_offered(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.http.local_files.MAX_NETWORK_BYTES", 199_999)
    assert in_browser("tiny", manifest("tiny"), settings) is None
    assert NETWORK not in [route.path for route in local_routes({"tiny": manifest("tiny")}, settings)]


def test_a_folder_that_lacks_a_file_is_told_in_a_sentence(settings: Settings, runtime: Path, tmp_path: Path):
    check_runtime(settings)
    (runtime / "ort.webgpu.min.mjs").unlink()
    with pytest.raises(
        SettingsError, match=r"--page-runtime: '.*dist' lacks ort\.webgpu\.min\.mjs; name the folder dist"
    ):
        check_runtime(settings)
    with pytest.raises(SettingsError, match=r"there is no folder '.*none'; name the folder dist of the npm package"):
        check_runtime(replace(settings, page_runtime=str(tmp_path / "none")))
    with pytest.raises(SettingsError, match="--page-runtime: '' is not a path in UTF-8"):
        replace(settings, page_runtime="")
