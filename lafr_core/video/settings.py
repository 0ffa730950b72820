"""The knobs that only clips have, declared as the photos' are: the command line and the nodes draw theirs from here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..settings import check, known_names, option

CODECS = ("auto", "h264", "h265", "vp9", "av1", "ffv1")


@known_names
@dataclass(frozen=True)
class ClipSettings:
    """How a clip is restored and written. Raises SettingsError for a value out of bounds."""

    steadiness: float = option(
        0.7, "Steadiness",
        "How far a face is held still from frame to frame: 0 = every frame restored alone, as a photo; 1 = steadiest.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    best_frames: float = option(
        0.0, "Best frames",
        "How much the frames in which a face is seen best (near, sharp) lend to those in which the same face is seen much "
        "worse: 0 = nothing, 1 = all they can. Does nothing at steadiness 0, and to a face that has a reference photo.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    codec: str = option(
        "auto", "Codec",
        "auto = h264, or ffv1 for clips with transparency. ffv1 is lossless: what was not restored keeps its very pixels.",
        choices=CODECS,
    )  # fmt: skip
    crf: int = option(
        16, "Quality (CRF)", "Lower is better and larger; 16 is hard to tell from lossless. Not used by ffv1.",
        low=0, high=51, step=1,
    )  # fmt: skip
    deinterlace: bool = option(
        False, "Deinterlace", "Make whole pictures of a camcorder's two half pictures before faces are restored."
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            check(f, getattr(self, f.name))
