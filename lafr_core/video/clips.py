"""Clip files -> frames, through PyAV. Nothing of a clip is opened that a film could not be: no playlist, no address.

Frames stream: one is in memory at a time. Times are the file's own, so that clips of varying frame rate keep theirs.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import ClipError, MissingPackageError
from . import planes
from .frames import ClipInfo, CodedFrame

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".m2v", ".ts", ".m2ts", ".mts", ".dv", ".flv",
    ".wmv", ".asf", ".3gp", ".ogv", ".mxf", ".nut",
)  # fmt: skip
"""What counts as a clip when a folder is searched."""

FORMATS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,dv,flv,asf,3gp,ogg,mxf,nut,ivf,h264,hevc,m4v,mjpeg,av1,obu"
"""Containers that are opened. Playlists (HLS, DASH, concat) stay out: they open other files and addresses."""
MAX_PIXELS = 1 << 26
"""Frames above this are refused (8192 x 8192): a second of them would not fit into memory."""
FALLBACK_RATE = Fraction(25)
"""Frames a second of a raw stream that does not say."""
MOST_FRAMES = 480
"""Frames a second above which a rate is not believed."""
SEEK_MARGINS = (0, 2, 10)
"""Seconds before the wanted frame at which a jump is tried."""
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a disk answers to writing, never to reading."""
_TOP_FIRST, _BOTTOM_FIRST = (2, 4), (3, 5)  # AVFieldOrder


@dataclass(frozen=True)
class Coding:
    """What of the stored stream must survive in the one written."""

    pixel_format: str
    aspect: Fraction | None
    """Width of a pixel over its height; None = square or unknown."""
    color: tuple[int, int, int, int]
    """Matrix, range, transfer and primaries by ITU-T H.273, 2 or 0 = not said."""
    fields: str = ""
    """'tff' or 'bff' for interlaced clips."""


class FileClip:
    """One clip file. Raises ClipError, path and one sentence, unless it holds pictures that can be decoded.

    deinterlace: whole pictures are made of the two half pictures of interlaced frames (bwdif), one a frame.
    """

    def __init__(self, path: Path, *, deinterlace: bool = False) -> None:
        self.path = Path(path)
        self.faults: list[str] = []
        """One sentence for each place of the file that could not be decoded, in the pass last made."""
        with opened(self.path) as container:
            stream = picture_stream(container, self.path)
            first = self._first(container, stream)
            self.offset = _offset(container, stream)
            rate = _rate(stream)
            rotation = round(first.rotation / 90) % 4 * 90
            self.coding = _coding(stream, first, deinterlace)
            self.deinterlace = deinterlace and bool(_fields(stream, first))
            self.info = ClipInfo(
                name=str(self.path),
                size=(first.height, first.width),
                rate=rate,
                time_base=stream.time_base,
                frames=_promised(container, stream, rate),
                rotation=rotation,
                notes=tuple(_notes(stream, first, self.coding, self.deinterlace, rotation)),
            )

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[CodedFrame]:
        """See :class:`~lafr_core.video.frames.Clip`."""
        self.faults = []
        with opened(self.path) as container:
            stream = picture_stream(container, self.path)
            stream.thread_type = "AUTO"
            decoded, index = self._from(container, stream, start, times)
            clock = _Clock(self.info, self.offset, times[index - 1] if index else None)
            for frame, fault in decoded:
                if (frame.height, frame.width) != self.info.size:
                    height, width = self.info.size
                    frame = frame.reformat(width=width, height=height)
                    fault = fault or "the picture's size changes here; scaled to the first frame's"
                time = clock(frame)
                if index >= start:
                    yield CodedFrame(index, time, planes.plain(frame), self.info.rotation, fault)
                index += 1

    def _from(self, container: Any, stream: Any, start: int, times: Sequence[int]) -> tuple[Iterator[tuple[Any, str]], int]:
        """The decoded frames from number ``start`` on, or from the first where the file cannot be jumped in; their number."""
        if start and len(times) > start:
            wanted = times[start] + self.offset
            for margin in SEEK_MARGINS:  # broadcast streams have no index: a jump may land behind the frame
                container.seek(max(0, wanted - round(margin / stream.time_base)), stream=stream, backward=True)
                decoded = self._decoded(container, stream)
                for frame, fault in decoded:
                    if frame.pts is None or frame.pts > wanted:
                        break
                    if frame.pts == wanted:
                        return itertools.chain([(frame, fault)], decoded), start
            container.seek(0, stream=stream, backward=True)
        return self._decoded(container, stream), 0

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[Any, str]]:
        """(frame, fault) in the order shown; deinterlaced where asked for."""
        import av

        graph = _graph(stream, "bwdif", "mode=send_frame:deint=interlaced") if self.deinterlace else None
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.faults.append(f"the file ends early ({_reason(error)})")
                packet = None
            try:
                decoded = stream.decode(packet)
            except av.error.EOFError:
                decoded = []
            except av.error.FFmpegError as error:
                where = (
                    f"{float(packet.pts * stream.time_base):.2f} s" if packet is not None and packet.pts is not None else "?"
                )
                self.faults.append(
                    f"a frame at {where} cannot be decoded ({_reason(error)}); the one before it is shown longer"
                )
                decoded = []
            for frame in decoded:
                fault = "damaged in the file" if frame.is_corrupt else ""
                if graph is None:
                    yield frame, fault
                    continue
                graph.push(frame)
                yield from ((done, fault) for done in _pulled(graph, stream.time_base))
            if packet is None or (packet.dts is None and packet.size == 0):
                break
        if graph is not None:
            graph.push(None)
            yield from ((done, "") for done in _pulled(graph, stream.time_base))

    def _first(self, container: Any, stream: Any) -> Any:
        self.deinterlace = False
        for frame, _ in self._decoded(container, stream):
            if frame.width * frame.height > MAX_PIXELS:
                raise ClipError(
                    f"{self.path}: frames of {frame.width}x{frame.height}; the limit is {MAX_PIXELS // 1_000_000} megapixels, "
                    "scale the clip down first"
                )
            return frame
        why = f" ({self.faults[0]})" if self.faults else ""
        raise ClipError(f"{self.path}: expected a clip, found no frame that can be decoded{why}; copy the file again")


class _Clock:
    """Frame times: the file's, made to rise strictly, counted on where the file has none."""

    def __init__(self, info: ClipInfo, offset: int, last: int | None) -> None:
        self.step = max(1, round(1 / (info.rate * info.time_base)))
        self.offset, self.last = offset, last

    def __call__(self, frame: Any) -> int:
        time = frame.pts - self.offset if frame.pts is not None else None
        if time is None:
            time = 0 if self.last is None else self.last + self.step
        elif self.last is not None and time <= self.last:
            time = self.last + 1
        self.last = time
        return time


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as a PyAV input container. Raises ClipError for what is not a clip, MissingPackageError without PyAV."""
    av = package()
    if path.is_dir():
        raise ClipError(f"{path}: expected a clip file, got a folder")
    if not path.is_file():
        raise ClipError(f"{path}: expected a clip file, found none there; check the path")
    if path.stat().st_size == 0:
        raise ClipError(f"{path}: is empty (0 bytes); copy the file again")
    try:
        container = av.open(
            str(path.resolve()),
            metadata_errors="replace",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ClipError(f"{path}: not a clip that can be opened ({_reason(error)}); convert it to MP4 or MKV") from error
    try:
        yield container
    except av.error.FFmpegError as error:
        if getattr(error, "errno", None) in _REFUSED:  # what is written from it, not the file itself
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise ClipError(f"{path}: cannot be read ({_reason(error)}); copy the file again") from error
    finally:
        container.close()


def package() -> Any:
    """PyAV. Raises MissingPackageError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(f"clips need PyAV ({error}); pip install av, or 'lafr[video]'") from error
    return av


def picture_stream(container: Any, path: Path) -> Any:
    """The container's film: its first video stream that is not a cover picture. Raises ClipError when there is none."""
    av = package()
    films = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not films:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise ClipError(f"{path}: expected a video stream, found {kinds}; choose a file with pictures")
    return films[0]


def _coding(stream: Any, first: Any, deinterlace: bool) -> Coding:
    aspect = stream.sample_aspect_ratio
    context, plain = stream.codec_context, planes.plain(first)
    return Coding(
        pixel_format=plain.format.name,
        aspect=Fraction(aspect) if aspect else None,
        color=(context.colorspace, plain.color_range, context.color_trc, context.color_primaries),
        fields="" if deinterlace else _fields(stream, first),
    )


def _fields(stream: Any, first: Any) -> str:
    order = getattr(stream.codec_context, "field_order", 0)
    if order in _BOTTOM_FIRST:
        return "bff"
    return "tff" if order in _TOP_FIRST or first.interlaced_frame else ""


def _offset(container: Any, stream: Any) -> int:
    """What is taken off all times, so that the clip starts at 0: broadcast streams start anywhere."""
    start = container.start_time or 0
    return round(Fraction(start, 1_000_000) / stream.time_base) if start > 0 else 0


def _said_rate(stream: Any) -> Fraction | None:
    """The mean frame rate, unless it is only the file's clock: MKV files without one seem to have 1000 frames a second."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= MOST_FRAMES:
            return Fraction(rate)
    return None


def _rate(stream: Any) -> Fraction:
    return _said_rate(stream) or FALLBACK_RATE


def _promised(container: Any, stream: Any, rate: Fraction) -> int:
    if stream.frames:
        return int(stream.frames)
    if stream.duration:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration, 1_000_000) * rate) if container.duration else 0


def _notes(stream: Any, first: Any, coding: Coding, deinterlaced: bool, rotation: int) -> Iterator[str]:
    if coding.fields:
        yield "interlaced: faces that move are restored better with --deinterlace"
    if deinterlaced:
        yield "deinterlaced"
    if first.rotation % 90:
        yield f"turned by {first.rotation} degrees: taken as {rotation}"
    if not _said_rate(stream):
        yield f"the file does not say its frame rate: {FALLBACK_RATE} frames a second assumed"


def _graph(stream: Any, name: str, arguments: str) -> Any:
    from av.filter import Graph

    graph = Graph()
    source, work, sink = graph.add_buffer(template=stream), graph.add(name, arguments), graph.add("buffersink")
    source.link_to(work)
    work.link_to(sink)
    graph.configure()
    return graph


def _pulled(graph: Any, time_base: Fraction) -> Iterator[Any]:
    """What comes out of the graph, its times in ``time_base`` again: bwdif counts in halves."""
    av = package()
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.pts is not None and frame.time_base:
            frame.pts = round(frame.pts * frame.time_base / time_base)
            frame.time_base = time_base
        yield frame


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
