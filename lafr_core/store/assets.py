"""Weight files: the ones in this repository, the user's own, and the few that can be downloaded.

Searched, in this order: the folders a host passes, the folders in ``LAFR_MODELS`` (separated like ``PATH``), the user cache
(:func:`cache_folder`), and where facexlib and insightface keep theirs. Written: the first folder of ``LAFR_MODELS``, else the
user cache; never this package's own folder. ``LAFR_OFFLINE=1`` forbids every download.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, DownloadError, InputError
from ..types import Progress
from . import checkpoint

_PACKAGE = Path(__file__).parent.parent
_CHUNK = 1 << 20
SAMPLES = ("portrait", "group")
"""Pictures that the repository carries."""
_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Asset:
    """A third-party weight file."""

    file: str
    sha256: tuple[str, ...]
    """Accepted digests, the one behind ``urls`` first."""
    urls: tuple[str, ...]
    """Mirrors, tried in order; () = only the user may place it."""
    licence: str
    manual: str
    """Where a person finds it."""


_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"
# Digests: this project's own copy of mobile0.25, the others as many independent projects pin them for the same addresses.
ASSETS: dict[str, Asset] = {
    asset.file: asset
    for asset in (
        Asset(
            "detection_mobilenet0.25_Final.pth",
            (
                "2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
                "7c417d4a43c5e2100ef40c2fbd2177d2fd0e5090d8e87c0fa31806cfb895c12f",  # the same network, saved anew
            ),
            (f"{_FACEXLIB}/v0.1.0/detection_mobilenet0.25_Final.pth",),
            "MIT",
            f"{_FACEXLIB}/v0.1.0/detection_mobilenet0.25_Final.pth",
        ),
        Asset(
            "detection_Resnet50_Final.pth",
            ("6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",),
            (f"{_FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth",),
            "MIT",
            f"{_FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth",
        ),
        Asset(
            "parsing_parsenet.pth",
            ("3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",),
            (f"{_FACEXLIB}/v0.2.2/parsing_parsenet.pth",),
            "MIT",
            f"{_FACEXLIB}/v0.2.2/parsing_parsenet.pth",
        ),
        Asset(
            "parsing_bisenet.pth",
            ("468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",),
            (f"{_FACEXLIB}/v0.2.0/parsing_bisenet.pth",),
            "MIT",
            f"{_FACEXLIB}/v0.2.0/parsing_bisenet.pth",
        ),
        Asset(
            "alignment_WFLW_4HG.pth",
            ("bbfd137307a4c7debd5c283b9b0ce539466cee417ac0a155e184d857f9f2899c",),
            (f"{_FACEXLIB}/v0.1.0/alignment_WFLW_4HG.pth",),
            "MIT",
            f"{_FACEXLIB}/v0.1.0/alignment_WFLW_4HG.pth",
        ),
        Asset(
            "det_10g.onnx",
            ("5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",),
            (),
            "non-commercial research only (insightface)",
            "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip",
        ),
    )
}
"""File name -> what is known of it."""


def bundled(kind: str, family: str = "sd") -> Path:
    """Where the repository's own weights of ``kind`` (see ``checkpoint.KINDS``) for latents of ``family`` belong; loaders say
    when they are missing.
    """
    if kind not in checkpoint.KINDS:
        raise CheckpointError(f"bundled weights: expected one of {', '.join(checkpoint.KINDS)}, got {kind!r}")
    return _PACKAGE / "weights" / (f"{kind}.safetensors" if family == "sd" else f"{kind}_{family}.safetensors")


def sample(name: str) -> Path:
    """A picture of the repository to try things on: "portrait" (one face) or "group" (four); CC0, sharp."""
    if name not in SAMPLES:
        raise InputError(f"sample: expected one of {', '.join(SAMPLES)}, got {name!r}")
    return _PACKAGE / "samples" / f"{name}.jpg"


def cache_folder() -> Path:
    """Where downloads go by the platform's own convention; not created here."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "lafr" / "models"


def search_folders(extra_folders: Iterable[Path] = ()) -> list[Path]:
    """Every folder that :func:`find` looks into, in order, existing or not, each once."""
    chosen = [Path(part) for part in os.environ.get("LAFR_MODELS", "").split(os.pathsep) if part]
    folders = [*map(Path, extra_folders), *chosen, cache_folder(), *_package_folders()]
    return list(dict.fromkeys(folders))


def download_folder() -> Path:
    """Where :func:`fetch` puts files: the first folder of ``LAFR_MODELS``, else the user cache."""
    chosen = [part for part in os.environ.get("LAFR_MODELS", "").split(os.pathsep) if part]
    return Path(chosen[0]) if chosen else cache_folder()


def find(filename: str, extra_folders: Iterable[Path] = ()) -> Path | None:
    """The first file of that name in the searched folders, or None."""
    candidates = (folder / filename for folder in search_folders(extra_folders))
    return next((path for path in candidates if path.is_file()), None)


def how_to_get(asset: Asset, extra_folders: Iterable[Path] = ()) -> str:
    """One sentence: where the file was looked for, and where to get it and put it."""
    looked = ", ".join(str(folder) for folder in search_folders(extra_folders))
    return (
        f"{asset.file} (licence: {asset.licence}) was looked for in {looked}; get it from {asset.manual} "
        f"and put it into {download_folder()}"
    )


def check(path: Path, asset: Asset) -> Path:
    """``path``, or CheckpointError when its sha256 is none of the asset's: what stands before unpickling a third-party file."""
    digest = _sha256(path)
    if digest not in asset.sha256:
        raise CheckpointError(
            f"{path}: expected sha256 {' or '.join(asset.sha256)}, got {digest}; delete it and get it again from {asset.manual}"
        )
    return path


def fetch(asset: Asset, progress: Progress | None = None) -> Path:
    """The asset's file in the user's folder, downloaded if it is not there yet.

    Goes on where an earlier try was cut (``<file>.part``, HTTP Range), tries every mirror, checks the sha256 and only then
    gives the file its name. ``progress("download", bytes, total)``; an exception raised in it stops and keeps the part.
    Raises DownloadError, with the address for doing it by hand, when no mirror works, or offline, or without a known address.
    """
    folder = download_folder()
    target = folder / asset.file
    if target.is_file() and _sha256(target) in asset.sha256:
        return target
    by_hand = f"get it by hand from {asset.manual} and put it into {folder}"
    if not asset.urls:
        raise DownloadError(f"{asset.file} cannot be downloaded for you (licence: {asset.licence}); {by_hand}")
    if os.environ.get("LAFR_OFFLINE", "") not in ("", "0"):
        raise DownloadError(f"{asset.file} is not here and LAFR_OFFLINE forbids downloads; unset it, or {by_hand}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{folder}: cannot be created ({error.strerror}); set LAFR_MODELS to a folder of yours") from error
    part = target.with_name(target.name + ".part")
    failures = []
    for url in asset.urls:
        try:
            _download(url, part, progress)
        except (OSError, ValueError) as error:  # URLError, HTTPError, timeouts and full disks are OSErrors
            failures.append(f"{url}: {error}")
            continue
        digest = _sha256(part)
        if digest in asset.sha256:
            os.replace(part, target)
            return target
        part.unlink()
        failures.append(f"{url}: sha256 {digest} instead of {asset.sha256[0]}, deleted")
    raise DownloadError(f"{asset.file}: download failed ({'; '.join(failures)}); try again, or {by_hand}")


def _download(url: str, part: Path, progress: Progress | None) -> None:
    """Append what is missing of ``url`` to ``part``. Raises OSError when the connection ends before the announced length."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("not a web address")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "lafr", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the part is of another file: the digest decides
            return
        raise
    with response:
        if response.status != 206:  # the server ignores ranges: from the start
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        with part.open("ab" if have else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress("download", have, total)
    if total and have != total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _blocks(stream: object) -> Iterator[bytes]:
    read = stream.read  # type: ignore[attr-defined]
    while block := read(_CHUNK):
        yield block


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _package_folders() -> Iterator[Path]:
    """Where facexlib and insightface put their own downloads; found without importing them."""
    try:
        spec = importlib.util.find_spec("facexlib")
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        yield Path(next(iter(spec.submodule_search_locations))) / "weights"
    yield Path.home() / ".insightface" / "models" / "buffalo_l"
