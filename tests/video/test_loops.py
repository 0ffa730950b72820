"""Clips in the gallery: loops that play, of the right frames and faces, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import MakeClip, moving
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import gallery
from lafr_core.app.clips import _entry
from lafr_core.app.loops import FACE, FRAMES, loops
from lafr_core.settings import RestoreSettings
from lafr_core.store.outputs import Outputs
from lafr_core.video.run import restore_clip
from lafr_core.video.settings import ClipSettings


def played(uri: str, pace: int = 40) -> list[np.ndarray]:
    """What is shown every ``pace`` milliseconds; WebP joins frames that are nearly alike."""
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        frames = []
        for k in range(image.n_frames):
            image.seek(k)
            image.load()
            frames += [np.asarray(image.convert("RGB"), dtype=float)] * round(image.info["duration"] / pace)
    return frames


def entry_of(path: Path, out: Path) -> dict[str, Any]:
    models = parts([face_at(20, 14, 40)])
    result = restore_clip(path, out, models, RestoreSettings(color=0.0), ClipSettings(steadiness=0.3, crf=4))
    return json.loads(json.dumps(_entry(path, result)))


def test_loops_show_the_clip_and_its_faces_before_and_after(make_clip: MakeClip, tmp_path: Path) -> None:
    entry = entry_of(make_clip("a.mp4", 22), tmp_path / "out")
    assert entry["tracks"][0]["start"] == 0 and entry["tracks"][0]["box"] == [20.0, 14.0, 60.0, 54.0]
    found = loops(entry)
    assert found is not None and found.size == (80, 64) and len(found.faces) == 1
    before, after = played(found.before), played(found.after)
    assert len(before) == len(after) == FRAMES and before[0].shape == (64, 80, 3)
    for k in (0, 9):
        assert np.abs(before[k] - moving(k)).mean() < 12 < np.abs(before[k] - moving(k + 9)).mean()
    assert np.abs(before[4] - after[4])[20:50, 24:56].mean() > 3 * np.abs(before[4] - after[4])[:, :8].mean()
    assert played(found.faces[0][1])[0].shape == (FACE, FACE, 3)


def test_a_clip_has_a_card_like_a_photos(make_clip: MakeClip, tmp_path: Path) -> None:
    entry = entry_of(make_clip("a.mp4", 6), tmp_path / "out")
    lost = {"input": "gone.mp4", "status": "failed", "reason": "not there", "tracks": [], "warnings": []}
    page = tmp_path / "look.html"
    gallery.write(page, {"lafr": "0"}, [entry, lost], Outputs())
    text = page.read_text()
    assert text.count("<article") == 2 and "gone.mp4" in text and "1 restored, 1 failed" in text
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    pictures = json.loads(data)
    assert len(played(pictures["before"])) == 6 and len(played(pictures["faces"][0][1])) == 6
    assert 'data-face="0" data-side="1"' in text


def test_a_result_that_is_gone_leaves_a_card_without_pictures(make_clip: MakeClip, tmp_path: Path) -> None:
    entry = entry_of(make_clip("a.mp4", 6), tmp_path / "out")
    Path(entry["output"]).unlink()
    assert loops(entry) is None


def test_an_animations_loops_need_no_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = (Image.fromarray(moving(k)) for k in range(6))
    first.save(tmp_path / "a.png", save_all=True, append_images=rest, duration=40)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    entry = entry_of(tmp_path / "a.png", tmp_path / "out")
    found = loops(entry)
    assert found is not None and len(played(found.after)) == 6
