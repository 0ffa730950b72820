"""Damaged clips and clips that lie: frames of the promised size come of them, or a sentence."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from frame import Case, Group, checksummed, mutated, rounds
from numpy.typing import NDArray
from PIL import Image

from lafr_core.video import clips, pictures
from lafr_core.video.sources import open_clip

MAX_PIXELS = 1_000_000
"""Of a frame of a film, and of all frames of an animation together."""
MOST_FRAMES = 300
"""Of the files here none has more than that; a lying one may."""
SIZE = (48, 64)
FRAMES = 6
FILMS = {
    "mp4 h264": ("mp4", "libx264", "yuv420p", {"preset": "ultrafast", "g": "3"}),
    "mov mpeg4": ("mov", "mpeg4", "yuv420p", {}),
    "mkv ffv1": ("matroska", "ffv1", "yuv444p", {}),
    "mkv h264": ("matroska", "libx264", "yuv420p10le", {"preset": "ultrafast"}),
    "avi mpeg4": ("avi", "mpeg4", "yuv420p", {}),
    "avi mjpeg": ("avi", "mjpeg", "yuvj420p", {}),
    "webm vp8": ("webm", "libvpx", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "ts mpeg2": ("mpegts", "mpeg2video", "yuv420p", {}),
}
"""Kind -> container, codec, pixels and the codec's options."""
WORDS = (
    b"moov", b"mvhd", b"tkhd", b"elst", b"mdhd", b"hdlr", b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss",
    b"avcC", b"mdat", b"avih", b"strh", b"strf", b"idx1", b"movi", b"acTL", b"fcTL", b"fdAT", b"ANMF", b"ANIM", b"VP8X",
    b"NETSCAPE2.0", b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x2a\xd7\xb1",
    b"\xb0", b"\xba",
)  # fmt: skip
"""Names of boxes, chunks and elements: behind them, and before those of MP4, stand sizes, counts and times."""
NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def shown(index: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([(3 * x + 20 * index) % 256, (2 * y + 40) % 256, np.full_like(x, (30 * index) % 256)], -1).astype(np.uint8)


def films() -> dict[str, bytes]:
    """Small films, in every container that people have, as far as this PyAV can write them."""
    import av

    made = {}
    for name, (container, codec, pixels, options) in FILMS.items():
        buffer = io.BytesIO()
        try:
            with av.open(buffer, "w", format=container) as file:
                film = file.add_stream(codec, rate=25, options=dict(options))
                film.height, film.width, film.pix_fmt = *SIZE, pixels
                for index in range(FRAMES):
                    frame: Any = av.VideoFrame.from_ndarray(shown(index), format="rgb24").reformat(format=pixels)
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                    file.mux(film.encode(frame))
                file.mux(film.encode(None))
        except (av.error.FFmpegError, ValueError):  # this build has no such encoder
            continue
        made[name] = buffer.getvalue()
    return made


def animations() -> dict[str, bytes]:
    frames = [Image.fromarray(shown(index)) for index in range(FRAMES)]
    veiled = [frame.copy() for frame in frames]
    for index, frame in enumerate(veiled):
        frame.putalpha(60 + 30 * index)
    kinds: dict[str, tuple[list[Image.Image], dict[str, Any]]] = {
        "gif": (frames, {"format": "GIF", "duration": 40, "loop": 0, "disposal": 2}),
        "gif once": ([frame.quantize(7) for frame in frames], {"format": "GIF", "duration": [10, 20, 30, 40, 50, 60]}),
        "apng": (frames, {"format": "PNG", "duration": 40}),
        "apng alpha": (veiled, {"format": "PNG", "duration": 40, "disposal": 1, "blend": 1}),
        "webp": (frames, {"format": "WEBP", "duration": 40, "lossless": True}),
        "webp alpha": (veiled, {"format": "WEBP", "duration": 40, "quality": 40}),
    }
    made = {}
    for name, (images, options) in kinds.items():
        buffer = io.BytesIO()
        images[0].save(buffer, save_all=True, append_images=images[1:], **options)
        made[name] = buffer.getvalue()
    return made


def suffix_of(name: str) -> str:
    """'webm vp8' -> '.webm'; 'apng alpha' -> '.png'."""
    return "." + name.partition(" ")[0].removeprefix("a" if name.startswith("apng") else "")


def lying(data: bytes, rng: random.Random) -> bytes:
    """The file with numbers changed that stand near the names of its parts."""
    file = bytearray(data)
    found = [at for word in WORDS for at in _places(data, word)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(found) if found else rng.randrange(len(file))
        at = max(0, at + rng.choice((-4, 4, 4, 8, 12, 16, 20, 24, rng.randrange(1, 100))))
        number, order = rng.choice(NUMBERS), rng.choice("<>")
        code = rng.choice("IIIHB")
        packed = struct.pack(order + code, number & ((1 << 8 * struct.calcsize(code)) - 1))
        file[at : at + len(packed)] = packed
    return bytes(file)


def _places(data: bytes, word: bytes) -> Iterator[int]:
    at = data.find(word)
    while at >= 0:
        yield at
        at = data.find(word, at + 1)


def damaged_clips(seed: int) -> Iterator[Case]:
    clips.MAX_PIXELS, pictures.MOST_PIXELS = MAX_PIXELS, MAX_PIXELS
    files = films() | animations()
    others = list(files.values())
    for name, data, rng in rounds(files, seed):
        if rng.random() < 0.5:
            bad = lying(data, rng)
        else:
            bad = mutated(data, others, rng)
        if data.startswith(b"\x89PNG"):
            bad = checksummed(bad)
        start = rng.choice((0, 0, 2))
        yield Case(name, bad, lambda path, start=start: look_through(path, start), suffix_of(name))


def look_through(path: Path, start: int) -> int:
    """Every frame as a restoration sees it: in order, of one size, its time later than the one before."""
    clip = open_clip(path)
    times: list[int] = []
    height, width = clip.info.size
    shape = (3, width, height) if clip.info.rotation in (90, 270) else (3, height, width)
    for number, frame in enumerate(clip.frames()):
        assert frame.index == number, f"frame {frame.index} where {number} comes next"
        assert not times or frame.time > times[-1], f"time {frame.time} after {times[-1]}"
        assert tuple(frame.pixels().shape) == shape, f"{tuple(frame.pixels().shape)} where {shape} is promised"
        times.append(frame.time)
        if number >= MOST_FRAMES:
            break
    if start and len(times) > start:
        again = next(iter(clip.frames(start, times)), None)
        assert again is None or again.index == start, f"frame {again.index if again else None} where {start} was asked for"
    assert all(isinstance(fault, str) and "\n" not in fault for fault in clip.faults)
    return len(times)


def _look_at_all() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, data in (films() | animations()).items():
            path = Path(folder) / f"clip{suffix_of(name)}"
            path.write_bytes(data)
            look_through(path, 2)


GROUPS = {"clips": Group(damaged_clips, _look_at_all)}
