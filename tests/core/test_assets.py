"""Downloads resume, are checked, and never leave a wrong or half file; nothing is fetched that the user forbade."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import lafr_core
from lafr_core.errors import CheckpointError, DownloadError, InputError
from lafr_core.store import assets
from lafr_core.store.assets import Asset

DATA = bytes(range(256)) * 8192  # 2 MiB: two blocks
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA at every path; remembers the Range headers, and can cut, ignore ranges or lie."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut_at: int | None = None
        self.ignore_ranges = False
        self.data = DATA

    def url(self, name: str = "net.pth") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if "missing" in self.path:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not self.server.ignore_ranges else 0
        if start >= len(self.server.data):
            self.send_error(416)
            return
        body = self.server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.server.cut_at is None else body[: self.server.cut_at])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.01), daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAFR_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("LAFR_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "models"


def asset(*urls: str, digest: str = DIGEST) -> Asset:
    return Asset("net.pth", (digest,), urls, "MIT", "https://example.org/net.pth")


def test_download_checks_and_names_the_file(server: Server, folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = assets.fetch(asset(server.url()), lambda *step: seen.append(step))
    assert path == folder / "net.pth" and path.read_bytes() == DATA
    assert [p.name for p in folder.iterdir()] == ["net.pth"]
    assert seen[-1] == ("download", len(DATA), len(DATA)) and len(seen) >= 2
    assert assets.fetch(asset(server.url())) == path
    assert server.ranges == [None]  # the second fetch asked nobody


def test_a_cut_download_goes_on_where_it_stopped(server: Server, folder: Path) -> None:
    server.cut_at = 700_000
    with pytest.raises(DownloadError, match=r"ended after 700000 of 2097152 bytes.*by hand from https://example.org/net.pth"):
        assets.fetch(asset(server.url()))
    assert (folder / "net.pth.part").stat().st_size == 700_000 and not (folder / "net.pth").exists()
    server.cut_at = None
    assert assets.fetch(asset(server.url())).read_bytes() == DATA
    assert server.ranges == [None, "bytes=700000-"]
    assert not (folder / "net.pth.part").exists()


def test_cancelling_keeps_the_part(server: Server, folder: Path) -> None:
    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.fetch(asset(server.url()), cancel)
    assert 0 < (folder / "net.pth.part").stat().st_size < len(DATA)
    assert assets.fetch(asset(server.url())).read_bytes() == DATA
    assert server.ranges[1] is not None


def test_a_server_without_ranges_is_read_from_the_start(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "net.pth.part").write_bytes(b"old rubbish")
    server.ignore_ranges = True
    assert assets.fetch(asset(server.url())).read_bytes() == DATA


def test_a_complete_part_is_accepted_and_a_wrong_one_deleted(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "net.pth.part").write_bytes(DATA)
    assert assets.fetch(asset(server.url())).read_bytes() == DATA
    (folder / "net.pth").unlink()
    (folder / "net.pth.part").write_bytes(bytes(len(DATA)))
    with pytest.raises(DownloadError, match="deleted"):
        assets.fetch(asset(server.url()))
    assert list(folder.iterdir()) == []
    assert assets.fetch(asset(server.url())).read_bytes() == DATA


def test_a_wrong_file_is_deleted_and_the_next_mirror_asked(server: Server, folder: Path) -> None:
    with pytest.raises(DownloadError, match=rf"sha256 {DIGEST} instead of 0000.*deleted"):
        assets.fetch(asset(server.url(), digest="0" * 64))
    assert list(folder.iterdir()) == []
    assert assets.fetch(asset(server.url("missing"), server.url())).read_bytes() == DATA


def test_a_damaged_file_in_place_is_replaced(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "net.pth").write_bytes(b"half")
    assert assets.fetch(asset(server.url())).read_bytes() == DATA


def test_offline_and_user_placed_files_are_never_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DownloadError, match=r"net\.pth cannot be downloaded for you \(licence: MIT\); get it by hand from https://"
    ):
        assets.fetch(asset())
    monkeypatch.setenv("LAFR_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=r"LAFR_OFFLINE forbids downloads; unset it, or get it by hand from https://.*put it into"
    ):
        assets.fetch(asset(server.url()))
    assert server.ranges == []
    monkeypatch.setenv("LAFR_OFFLINE", "0")
    assets.fetch(asset(server.url()))


def test_only_web_addresses_are_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(DATA)
    with pytest.raises(DownloadError, match="not a web address"):
        assets.fetch(asset((tmp_path / "secret").as_uri()))


def test_folders_are_searched_in_order(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, second, cache = tmp_path / "host", tmp_path / "second", tmp_path / "cache" / "lafr" / "models"
    monkeypatch.setenv("LAFR_MODELS", f"{folder}{assets.os.pathsep}{second}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(assets.sys, "platform", "linux")
    assert assets.search_folders([host])[:4] == [host, folder, second, cache]
    assert assets.download_folder() == folder
    assert assets.find("net.pth", [host]) is None
    for place in (cache, second, folder, host):  # each found file hides the later ones
        place.mkdir(parents=True)
        (place / "net.pth").write_bytes(b"")
        assert assets.find("net.pth", [host]) == place / "net.pth"
    message = assets.how_to_get(asset(), [host])
    assert all(str(place) in message for place in (host, folder, second, cache)) and "https://example.org/net.pth" in message


@pytest.mark.parametrize(
    ("platform", "variable", "tail"),
    [
        ("win32", "LOCALAPPDATA", "lafr/models"),
        ("linux", "XDG_CACHE_HOME", "lafr/models"),
        ("darwin", None, "Library/Caches/lafr/models"),
    ],
)
def test_the_cache_follows_the_platform(
    platform: str, variable: str | None, tail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAFR_MODELS")
    monkeypatch.setattr(assets.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert assets.download_folder() == tmp_path / tail
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


def test_check_stands_before_unpickling(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(DATA)
    assert assets.check(path, asset()) == path
    path.write_bytes(DATA[:-1])
    with pytest.raises(CheckpointError, match=rf"net\.pth: expected sha256 {DIGEST}, got [0-9a-f]{{64}}; delete it"):
        assets.check(path, asset())


def test_the_table_is_well_formed() -> None:
    for name, row in assets.ASSETS.items():
        assert row.file == name and row.sha256 and row.licence and row.manual.startswith("https://")
        assert all(len(digest) == 64 and int(digest, 16) for digest in row.sha256)
        assert all(url.startswith("https://") and url.endswith(name) for url in row.urls)


def test_samples_are_pictures_of_the_repository() -> None:
    for name in assets.SAMPLES:
        with Image.open(assets.sample(name)) as image:
            assert image.format == "JPEG" and min(image.size) >= 400
    with pytest.raises(InputError, match="expected one of portrait, group, got 'cat'"):
        assets.sample("cat")


def test_bundled_is_beside_the_library() -> None:
    assert assets.bundled("prior") == Path(lafr_core.__file__).parent / "weights" / "prior.safetensors"
    kinds = "detector, vae, adapter, prior, embedder, trust, confidence, presence"
    with pytest.raises(CheckpointError, match=f"expected one of {kinds}, got 'net'"):
        assets.bundled("net")
