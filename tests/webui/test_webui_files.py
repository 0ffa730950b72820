"""Third-party face networks: found where the webuis keep them, given up with a sentence, never fetched unasked."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from webui_fakes import LANDMARKS, info, photo, toy_parts

from lafr_core.errors import CheckpointError
from lafr_core.store import assets
from lafr_core.types import Face


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch, tmp_path):
    """No weights of this machine, and a network that fails the test when it is touched."""
    monkeypatch.setattr(assets, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(assets, "_package_folders", lambda: [])
    monkeypatch.delenv("LAFR_MODELS", raising=False)
    monkeypatch.setattr(assets, "_download", lambda url, *_: pytest.fail(f"network: {url}"))


@pytest.fixture
def opened(monkeypatch):
    """``open_models`` with toys; the list holds (detector, folders) of each call."""
    from lafr_webui import engine

    calls = []

    def open_models(settings, *, device, folders=()):
        calls.append((settings.detector, folders))
        return toy_parts()

    engine.CACHE.clear()
    monkeypatch.setattr(engine, "open_models", open_models)
    return calls


def put(folder: Path, file: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"weights")
    return folder / file


@pytest.mark.parametrize(
    "folder", ["models/GFPGAN", "models/Codeformer", "models/facexlib", "models/facedetection", "gfpgan/weights"]
)
def test_the_webuis_own_folders(webui, opened, folder):
    from lafr_webui import host

    put(webui.folder / folder, "detection_Resnet50_Final.pth")
    assert host.weight_folders() == (webui.folder / folder,)
    pp = webui.run(photo(), {"enable": True, "detector": "retinaface-resnet50"})
    assert opened == [("retinaface-resnet50", (webui.folder / folder,))] and info(pp).note == ""


def test_the_switches_come_first(webui, opened, tmp_path):
    from lafr_webui import host

    for name in ("mine", "theirs", "single"):
        put(tmp_path / name, "x")
    (webui.folder / "models" / "GFPGAN").mkdir(parents=True)
    vars(webui.shared.cmd_opts).update(
        gfpgan_models_path=str(tmp_path / "mine"),
        codeformer_models_path=str(tmp_path / "theirs"),
        gfpgan_dir="./GFPGAN",
        gfpgan_model=str(tmp_path / "single" / "GFPGANv1.4.pth"),
    )
    expected = (tmp_path / "mine", tmp_path / "theirs", tmp_path / "single", webui.folder / "models" / "GFPGAN")
    assert host.weight_folders() == expected


def test_auto_takes_the_best_of_the_webuis(webui, monkeypatch):
    from lafr_core.faces import detectors

    put(webui.folder / "models" / "GFPGAN", "detection_Resnet50_Final.pth")
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: object() if name == "facexlib" else None)
    taken = []
    monkeypatch.setattr(
        detectors, "open_retinaface", lambda name, path, device: taken.append((name, path)) or toy_parts().detector
    )
    webui.run(photo(), {"enable": True})
    assert taken == [("retinaface-resnet50", webui.folder / "models" / "GFPGAN" / "detection_Resnet50_Final.pth")]


def test_a_detector_that_is_not_here_gives_way(webui, opened):
    (webui.folder / "models" / "GFPGAN").mkdir(parents=True)
    report = info(webui.run(photo(), {"enable": True, "detector": "retinaface-resnet50"}))
    assert report.status == "ok" and [name for name, _ in opened] == ["auto"]
    expected = f"detector auto used (detection_Resnet50_Final.pth is not here; put it into {webui.folder / 'models' / 'GFPGAN'}"
    assert report.note.startswith(expected)


def test_a_damaged_file_of_the_webui_gives_way(webui, opened, monkeypatch):
    from lafr_webui import engine

    plain = engine.open_models

    def open_models(settings, **rest):
        if settings.detector != "starter":
            raise CheckpointError("detection_Resnet50_Final.pth: expected sha256 1, got 2")
        return plain(settings, **rest)

    monkeypatch.setattr(engine, "open_models", open_models)
    report = info(webui.run(photo(), {"enable": True}))
    assert report.status == "ok" and "LAFR's own detector used (detection_Resnet50_Final.pth" in report.note


@pytest.mark.parametrize("offline", ["", "1"])
def test_parse_without_weights_is_oval_with_a_note(webui, opened, monkeypatch, offline):
    monkeypatch.setenv("LAFR_OFFLINE", offline)
    runner = webui.runner()
    pp = webui.run(photo(), {"enable": True, "mask": "parse"}, runner)
    oval = webui.run(photo(), {"enable": True}, runner)
    assert info(pp).status == "ok" and "mask oval used (parsing_parsenet.pth is not here" in info(pp).note
    assert pp.image.tobytes() == oval.image.tobytes() and info(oval).note == ""


@pytest.mark.parametrize("file", ["parsing_parsenet.pth", "parsing_bisenet.pth"])
def test_parse_with_the_webuis_parser(webui, opened, monkeypatch, file):
    from lafr_webui import engine

    path = put(webui.folder / "models" / "GFPGAN", file)
    monkeypatch.setattr(assets, "check", lambda path, asset: path)
    seen = []

    class Left:
        name = "left"

        def __call__(self, crops):
            masks = torch.zeros_like(crops[:, :1])
            masks[..., :256] = 1
            return masks

    monkeypatch.setattr(engine.parser, "open_parser", lambda path, device: seen.append(path) or Left())
    face = Face((8.0, 20.0, 72.0, 84.0), tuple((x + 8, y + 20) for x, y in LANDMARKS), 0.9)
    monkeypatch.setattr("webui_fakes.ToyDetector.__call__", lambda self, image, threshold: [face])
    pp = webui.run(photo(), {"enable": True, "mask": "parse"})
    assert seen == [path] and info(pp).note == ""
    assert info(webui.run(photo(), {"enable": True, "mask": "parse"})).note == "" and len(seen) == 1


def test_parse_with_a_file_that_is_another(webui, opened):
    put(webui.folder / "models" / "GFPGAN", "parsing_parsenet.pth")
    report = info(webui.run(photo(), {"enable": True, "mask": "parse"}))
    assert report.status == "ok" and "mask oval used" in report.note and "expected sha256" in report.note


def test_downloads_are_for_those_who_switched_them_on(webui, opened, monkeypatch):
    from lafr_webui import engine

    asked = []

    def fetch(asset):
        asked.append(asset.file)
        raise engine.DownloadError("no network today")

    monkeypatch.setattr(assets, "fetch", fetch)
    webui.run(photo(), {"enable": True, "mask": "parse"})
    assert asked == []
    webui.shared.opts.data[engine.DOWNLOAD] = True
    report = info(webui.run(photo(), {"enable": True, "mask": "parse"}))
    assert asked == ["parsing_parsenet.pth"] and "mask oval used (no network today)" in report.note
    webui.run(photo(), {"enable": True, "detector": "retinaface-resnet50"})
    assert opened[-1][0] == "retinaface-resnet50", "open_models fetches what it is asked for"


def test_folders_reach_the_real_opener(monkeypatch, tmp_path):
    from lafr_core.faces import detectors, parser

    found = put(tmp_path, "parsing_bisenet.pth")
    assert detectors.find_weights("retinaface-resnet50", [tmp_path]) is None
    assert detectors.find_weights("retinaface-resnet50", [put(tmp_path, "detection_Resnet50_Final.pth").parent]) is not None
    monkeypatch.setattr(parser.assets, "check", lambda path, asset: path)
    monkeypatch.setattr(parser, "_load", lambda path, device: types.SimpleNamespace(path=path))
    assert parser.open_parser(None, torch.device("cpu"), [tmp_path]).path == found
    assert parser.open_parser(None, torch.device("cpu")) is None
