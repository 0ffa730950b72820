"""Small clips, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import CLOCK, SIZE, MakeClip, moving, shown_at


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """``make_clip("name.mp4", frames=24, codec=..., pixels=..., sound=..., **more) -> path``; skips without PyAV."""
    av = pytest.importorskip("av", reason="clips need PyAV")

    def make(
        name: str = "clip.mp4",
        frames: int = 24,
        *,
        codec: str = "libx264",
        pixels: str = "yuv420p",
        sound: str | None = "aac",
        size: tuple[int, int] = SIZE,
        rotation: int = 0,
        options: dict[str, str] | None = None,
        steady_rate: bool = False,
        change: Callable[[Any], None] = lambda stream: None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            film = container.add_stream(codec, rate=25, options=options or {})
            film.height, film.width, film.pix_fmt = *size, pixels
            base = Fraction(1, 25) if steady_rate else CLOCK
            film.codec_context.time_base = base
            if rotation:
                film.set_display_rotation(rotation)
            change(film)
            tone = container.add_stream(sound, rate=48000) if sound else None
            if tone is not None:
                tone.metadata["language"] = "deu"
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(moving(index, size), format="rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = index if steady_rate else shown_at(index), base
                container.mux(film.encode(frame))
                if tone is not None:
                    wave = (0.3 * np.sin(np.arange(1920) / 20)).astype(np.float32)[None].repeat(2, 0)
                    part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
                    part.sample_rate, part.pts = 48000, 1920 * index
                    container.mux(tone.encode(part))
            container.mux(film.encode(None))
            if tone is not None:
                container.mux(tone.encode(None))
        return path

    return make
