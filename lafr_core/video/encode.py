"""Frames -> one coded segment, and segments -> the finished clip with everything else that the source held.

A clip is written in segments of some seconds, each a playable file. So a run that was stopped goes on at the last whole one,
several processes can share a clip, and joining them copies packets without coding anything a second time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import ClipError
from ..store.atomic import atomic
from . import planes
from .clips import FileClip, opened, package, picture_stream
from .frames import ClipInfo, CodedFrame
from .settings import ClipSettings
from .target import Seal, no_seal

ENCODERS = {"h264": "libx264", "h265": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1", "ffv1": "ffv1"}
"""``--codec`` -> FFmpeg's encoder. ffv1 is lossless: pixels that were not restored come out bit for bit."""
MOVIE = (".mp4", ".m4v", ".mov", ".3gp")


@dataclass(frozen=True)
class Plan:
    """A target settled for one source."""

    codec: str
    suffix: str
    pixel_format: str
    notes: tuple[str, ...]
    """What could not be kept, and why the result is of another kind than asked for."""
    streams: tuple[int, ...]
    """Indices of the source's other streams that the result carries."""


def settle(clip: FileClip, settings: ClipSettings) -> Plan:
    """Codec, container and pixel format for the clip. Raises ClipError where this PyAV cannot encode it."""
    av = package()
    stored = av.VideoFormat(clip.coding.pixel_format)
    codec, notes = settings.codec, []
    if codec == "auto":
        codec = "ffv1" if planes.has_alpha(stored) else "h264"
        if codec == "ffv1":
            notes.append("transparency kept: coded as ffv1, since h264 has none")
    try:
        formats = [f.name for f in av.Codec(ENCODERS[codec], "w").video_formats or ()]
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"{clip.path}: this PyAV has no encoder for {codec} ({error}); choose another --codec") from error
    pixel_format = _nearest(stored, formats, clip.info.size, lossless=codec == "ffv1")
    if pixel_format != stored.name:
        notes.append(f"pixels stored as {pixel_format} instead of {stored.name}, which {codec} cannot hold at this size")
    if planes.has_alpha(stored) and not planes.has_alpha(av.VideoFormat(pixel_format)):
        notes.append(f"transparency is lost: {codec} has none; use --codec ffv1")
    suffix, streams, lost = _container(clip, codec)
    return Plan(codec, suffix, pixel_format, (*notes, *lost), streams)


def _nearest(stored: Any, formats: Sequence[str], size: tuple[int, int], lossless: bool) -> str:
    """The encoder's pixel format that loses least of ``stored``; pictures with odd sides need colour for every pixel."""
    av = package()

    def grain(pixel_format: Any) -> int:
        """Colour values per 64x64 pixels."""
        if pixel_format.name.startswith("gray"):
            return 0
        return 4096 if pixel_format.is_rgb else int(pixel_format.chroma_width(64) * pixel_format.chroma_height(64))

    def loss(name: str) -> tuple[int, ...]:
        kind = av.VideoFormat(name)
        odd = any(side % 2 for side in size) and 0 < grain(kind) < 4096
        return (
            int(odd),
            int(kind.is_rgb != stored.is_rgb),
            int(planes.has_alpha(stored) and not planes.has_alpha(kind)),
            max(0, grain(stored) - grain(kind)),
            max(0, planes.depth(stored) - planes.depth(kind)),
            grain(kind),
            planes.depth(kind),
            int(planes.has_alpha(kind)),
        )

    usable = [
        name
        for name in formats
        if not name.startswith(("yuvj", "nv", "p0", "p2", "p4", "bayer", "ya")) and not name.endswith(("be", "f16le", "f32le"))
        if lossless or not (av.VideoFormat(name).is_rgb or name.startswith("gray"))
    ]
    return min(usable, key=lambda name: (loss(name), name != stored.name))


def _container(clip: FileClip, codec: str) -> tuple[str, tuple[int, ...], list[str]]:
    """(suffix, the source's other streams it can carry, sentences about those it cannot)."""
    own = clip.path.suffix.lower()
    if codec in ("h264", "h265", "av1", "vp9") and own in MOVIE:
        wanted = [own, ".mkv"]
    elif codec in ("vp9", "av1") and own == ".webm":
        wanted = [".webm", ".mkv"]
    else:
        wanted = [".mkv"]
    with opened(clip.path) as source:
        film = picture_stream(source, clip.path)
        others = [stream for stream in source.streams if stream.index != film.index]
        carried = {suffix: [s for s in others if _fits(s, suffix)] for suffix in wanted}
        # The source's own kind of file, unless another saves more of its sound and subtitles.
        kind = max(wanted, key=lambda suffix: sum(s.type in ("audio", "subtitle") for s in carried[suffix]))
        lost = [
            f"stream {s.index} ({_kind(s)}) cannot be carried by {kind} and is left out"
            for s in others
            if s not in carried[kind]
        ]
        return kind, tuple(s.index for s in carried[kind]), lost


def _kind(stream: Any) -> str:
    context = getattr(stream, "codec_context", None)
    return f"{stream.type} {context.name}" if context is not None else str(stream.type)


def _fits(stream: Any, suffix: str) -> bool:
    """Whether a file of this kind can hold the stream as it is: tried, on a file in memory."""
    av = package()
    if stream.type == "attachment":
        return suffix == ".mkv"
    try:
        with av.open(io.BytesIO(), "w", format=_muxer(suffix)) as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _muxer(suffix: str) -> str:
    return {".mkv": "matroska", ".webm": "webm", ".mov": "mov", ".3gp": "3gp"}.get(suffix, "mp4")


@dataclass(frozen=True)
class Film:
    """A film settled for a film: :class:`~lafr_core.video.target.Target` by the functions of this module."""

    clip: FileClip
    plan: Plan
    how: ClipSettings

    @classmethod
    def settle(cls, clip: FileClip, how: ClipSettings) -> Film:
        """See :func:`settle`."""
        return cls(clip, settle(clip, how), how)

    @property
    def suffix(self) -> str:
        return self.plan.suffix

    @property
    def notes(self) -> tuple[str, ...]:
        return self.plan.notes

    def segment(self, path: Path) -> SegmentWriter:
        return SegmentWriter(path, self.clip, self.plan, self.how)

    def join(
        self, segments: Sequence[Path], out: Path, *, whole: bool = True, replace: bool = False, seal: Seal = no_seal
    ) -> None:
        join(self.clip, self.plan, segments, out, whole=whole, replace=replace, seal=seal)


# --- one segment ---


class SegmentWriter:
    """Codes consecutive frames into one file. The file is playable once :meth:`close` has run."""

    def __init__(self, path: Path, clip: FileClip, plan: Plan, settings: ClipSettings) -> None:
        av = package()
        self.frames = 0
        self._format = plan.pixel_format
        self._container = av.open(str(path), "w", format=_muxer(plan.suffix))
        self._stream = _film(self._container, clip, plan, settings)
        self._fields = _fields_graph(self._stream, clip.coding.fields) if clip.coding.fields else None

    def write(self, frame: CodedFrame) -> None:
        """Add one frame; its time decides where it stands."""
        coded = frame.coded
        if coded.format.name != self._format:
            labels = (coded.colorspace, coded.color_range)
            coded = coded.reformat(format=self._format, dst_color_range=coded.color_range or None)
            coded.colorspace, coded.color_range = labels
        coded.pts, coded.pict_type = frame.time, 0
        coded.time_base = self._stream.codec_context.time_base
        if self._fields is not None:
            self._fields.push(coded)
            coded = self._fields.pull()
        self._container.mux(self._stream.encode(coded))
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds and end the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Let go of the file after an error; it is not whole."""
        self._container.close()


def _film(container: Any, clip: FileClip, plan: Plan, settings: ClipSettings) -> Any:
    """The coded stream, with everything that the source's said of its pictures."""
    options = {"ffv1": {"level": "3", "slicecrc": "1"}}.get(plan.codec, {"crf": str(settings.crf)})
    if plan.codec in ("h264", "h265"):
        options["preset"] = "medium"
    if plan.codec == "h265":
        options["x265-params"] = "log-level=error"
    if plan.codec == "vp9":
        options |= {"b": "0", "row-mt": "1"}
    if clip.coding.fields:
        options["flags"] = "+ildct+ilme"
    stream = container.add_stream(ENCODERS[plan.codec], rate=clip.info.rate, options=options)
    context = stream.codec_context
    stream.height, stream.width = clip.info.size
    stream.pix_fmt = plan.pixel_format
    context.time_base = clip.info.time_base
    stream.time_base = clip.info.time_base
    context.colorspace, context.color_range, context.color_trc, context.color_primaries = clip.coding.color
    if clip.coding.aspect:
        context.sample_aspect_ratio = clip.coding.aspect
    if clip.info.rotation:
        stream.set_display_rotation(clip.info.rotation)
    if plan.codec == "h265" and plan.suffix in MOVIE:
        context.codec_tag = "hvc1"  # what Apple's players ask for
    return stream


def _fields_graph(stream: Any, order: str) -> Any:
    """Marks frames as made of two fields: the encoder asks each frame, and PyAV cannot set it."""
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=stream.width, height=stream.height, format=stream.pix_fmt, time_base=stream.codec_context.time_base
    )
    mark, sink = graph.add("setfield", f"mode={order}"), graph.add("buffersink")
    source.link_to(mark)
    mark.link_to(sink)
    graph.configure()
    return graph


# --- joining ---


def join(
    clip: FileClip,
    plan: Plan,
    segments: Sequence[Path],
    out: Path,
    *,
    whole: bool = True,
    replace: bool = False,
    seal: Seal = no_seal,
) -> None:
    """The segments, in order, as one clip at ``out``, with the sound, subtitles, chapters and titles of the source.

    whole: False cuts the other streams where the pictures end. ``seal`` sees the file before it gets its name.
    ``replace``: an existing ``out`` is replaced, whole or not at all. Raises ClipError when the file cannot be written.
    """
    av = package()
    try:
        with atomic(out, replace=replace) as temporary, opened(clip.path) as source:
            with av.open(str(temporary), "w", format=_muxer(plan.suffix), options=_movie_options(plan.suffix)) as result:
                _fill(result, source, clip, plan, segments, whole)
            seal(clip.path, temporary, out)
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _movie_options(suffix: str) -> dict[str, str]:
    return {"movflags": "+faststart+use_metadata_tags"} if suffix in MOVIE else {}


def _fill(result: Any, source: Any, clip: FileClip, plan: Plan, segments: Sequence[Path], whole: bool) -> None:
    with package().open(str(segments[0])) as first:
        film = result.add_stream_from_template(first.streams.video[0], opaque=True)
    film.time_base = clip.info.time_base
    if clip.info.rotation:
        film.set_display_rotation(clip.info.rotation)
    _describe(film, picture_stream(source, clip.path))
    others = {}
    for index in plan.streams:
        stream = source.streams[index]
        if stream.type == "attachment":
            result.add_attachment(
                stream.name or f"attachment {index}", stream.mimetype or "application/octet-stream", stream.data
            )
            continue
        others[index] = result.add_stream_from_template(stream)
        _describe(others[index], stream)
    result.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OWN_WORDS})
    chapters = source.chapters() if hasattr(source, "chapters") else []
    if chapters:
        result.set_chapters(chapters)
    end = None if whole else _end(segments, clip.info)
    _interleave(result, _film_packets(segments, film, clip.info.time_base, plan), _other_packets(source, others, clip, end))


_OWN_WORDS = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration", "creation_time_utc")
"""What a container says of itself, not of the film."""


def _describe(new: Any, old: Any) -> None:
    """Titles, languages and what the stream is for."""
    new.metadata.update({k: v for k, v in old.metadata.items() if k.lower() not in (*_OWN_WORDS, "vendor_id", "rotate")})
    new.disposition = old.disposition


Timed = tuple[Fraction, Any]
"""(seconds, packet)."""


def _film_packets(segments: Sequence[Path], film: Any, base: Fraction, plan: Plan) -> Iterator[Timed]:
    """All pictures' packets. The decoding times are counted anew, since each segment's own begin too early to follow on."""
    av = package()
    depth = 0 if plan.codec == "ffv1" else max(_reordering(path) for path in segments)
    shown: list[int] = []
    for path in segments:
        with av.open(str(path)) as segment:
            stream = segment.streams.video[0]
            packets = [packet for packet in segment.demux(stream) if packet.size]
            scale = stream.time_base / base
        times = [round(packet.pts * scale) for packet in packets]
        shown = shown[-depth:] if depth else []
        if len(shown) < depth:
            step = max(1, sorted(times)[1] - sorted(times)[0]) if len(times) > 1 else 1
            shown = [min(times) - step * (depth - k) for k in range(depth)]
        shown += sorted(times)
        for number, (packet, time) in enumerate(zip(packets, times, strict=True)):
            packet.stream, packet.time_base = film, base
            packet.duration = round((packet.duration or 0) * scale)
            packet.pts, packet.dts = time, shown[number]
            yield time * base, packet


def _reordering(path: Path) -> int:
    """How many packets at most come before one that is shown earlier."""
    av = package()
    with av.open(str(path)) as segment:
        times = [packet.pts for packet in segment.demux(segment.streams.video[0]) if packet.size]
    rank = {time: number for number, time in enumerate(sorted(times))}
    return max((number - rank[time] for number, time in enumerate(times)), default=0)


def _other_packets(source: Any, others: Mapping[int, Any], clip: FileClip, end: Fraction | None) -> Iterator[Timed]:
    if not others:
        return
    shift = clip.offset * clip.info.time_base
    for packet in source.demux([source.streams[index] for index in others]):
        if packet.dts is None and packet.pts is None:
            continue
        base = packet.time_base
        off = round(shift / base)
        packet.pts = packet.pts - off if packet.pts is not None else None
        packet.dts = packet.dts - off if packet.dts is not None else None
        time = (packet.pts if packet.pts is not None else packet.dts) * base
        if end is not None and time > end:
            continue
        packet.stream = others[packet.stream.index]
        yield time, packet


def _interleave(result: Any, film: Iterator[Timed], other: Iterator[Timed]) -> None:
    """Both in the order of their times, so that the muxer need not hold one of them back."""
    picture, sound = next(film, None), next(other, None)
    while picture is not None or sound is not None:
        if sound is None or (picture is not None and picture[0] <= sound[0]):
            assert picture is not None
            result.mux_one(picture[1])
            picture = next(film, None)
        else:
            result.mux_one(sound[1])
            sound = next(other, None)


def _end(segments: Sequence[Path], info: ClipInfo) -> Fraction:
    """When the last segment's last picture ends, in seconds."""
    av = package()
    with av.open(str(segments[-1])) as segment:
        stream = segment.streams.video[0]
        last = max(packet.pts for packet in segment.demux(stream) if packet.size)
        return Fraction(last * stream.time_base + 1 / info.rate)
