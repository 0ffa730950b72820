"""Every user-facing knob, once: default, bounds, label and help.

The command line, the ComfyUI schemas and the A1111 widgets are drawn from :class:`RestoreSettings`; a test holds
them together.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from .errors import SettingsError

DETECTORS = ("auto", "starter", "retinaface-mobile0.25", "retinaface-resnet50", "scrfd")
SORTS = ("area", "x", "y", "score", "centre")
MASKS = ("oval", "square", "parse")


@dataclass(frozen=True)
class Option:
    """How one setting is shown and bounded. ``low`` and ``high`` are inclusive."""

    label: str
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None


def option(default: Any, label: str, help: str, **bounds: Any) -> Any:
    """A dataclass field that carries its :class:`Option`; other records of settings (the webui's) are declared with it too."""
    return field(default=default, metadata={"option": Option(label, help, **bounds)})


Record = TypeVar("Record", bound=type)


def known_names(record: Record) -> Record:
    """A dataclass of settings that answers an unknown name with SettingsError, where Python's own answer is a TypeError."""
    fill = record.__init__  # type: ignore[misc]

    @functools.wraps(fill)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        check_names(values, [f.name for f in fields(record)])
        fill(self, *args, **values)

    record.__init__ = __init__  # type: ignore[misc]
    return record


@known_names
@dataclass(frozen=True)
class RestoreSettings:
    """One validated record of what a user can choose. Raises SettingsError for a value out of bounds."""

    detector: str = option(
        "auto", "Detector", "Which face detector to use. auto = the best one whose weights are at hand.", choices=DETECTORS
    )
    threshold: float = option(
        0.6, "Detection threshold", "Faces below this score are ignored. Lower finds more faces and more mistakes.",
        low=0.05, high=0.99, step=0.01,
    )  # fmt: skip
    min_face: int = option(
        0, "Smallest face", "Ignore faces whose longer box side is below this many pixels. 0 = no limit.",
        low=0, high=16384, step=1,
    )  # fmt: skip
    max_face: int = option(
        0, "Largest face", "Ignore faces whose longer box side is above this many pixels. 0 = no limit.",
        low=0, high=16384, step=1,
    )  # fmt: skip
    sort: str = option(
        "area", "Order of faces",
        "area = largest first, x = left to right, y = top to bottom, score = surest first, centre = most central first.",
        choices=SORTS,
    )  # fmt: skip
    top_k: int = option(
        0, "At most", "Keep only this many faces, the first ones in the chosen order. 0 = all.", low=0, high=1000, step=1
    )
    faces: str = option(
        "", "Which faces", "Numbers of the faces to restore in the chosen order, counted from 0: '0,2'. Empty = all."
    )
    rotate: bool = option(True, "Try rotated", "When no face is found, look again at 90, 180 and 270 degrees.")
    detect_side: int = option(
        1024, "Detection size", "Photos with a longer side above this are scaled down for detection only.",
        low=128, high=8192, step=64,
    )  # fmt: skip
    small_faces: bool = option(
        True, "Find small faces", "Look a second time at twice the detection size, for small faces in big photos."
    )
    fidelity: float = option(
        0.75, "Fidelity",
        "0 = trust the codebook (strongest restoration), 1 = stay as close to the input as possible.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    strength: float = option(
        1.0, "Strength", "Blend of the restored face with the photo: 0 = unchanged photo, 1 = fully restored face.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    mask: str = option(
        "oval", "Mask",
        "Which part of the crop is pasted: oval = soft ellipse, square = whole crop with a soft edge, "
        "parse = face outline (needs facexlib's parser).",
        choices=MASKS,
    )  # fmt: skip
    feather: float = option(
        0.1, "Feather", "Width of the mask's soft edge as a share of the crop.", low=0.0, high=0.5, step=0.01
    )
    color: float = option(
        1.0, "Colour match", "How far the restored face takes the photo's colours back: 0 = not at all, 1 = fully.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    grain: float = option(
        0.0, "Grain match", "How much of the photo's grain is put on the restored face: 0 = none, 1 = as grainy as the photo.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    identity_warning: float = option(
        0.5, "Trust warning",
        "Warn when a restored face is estimated to be less like the real person than this cosine. -1 = never warn.",
        low=-1.0, high=1.0, step=0.05,
    )  # fmt: skip
    batch_size: int = option(
        4, "Faces at a time", "Faces per forward pass. Memory grows with this, not with the number of faces.",
        low=1, high=64, step=1,
    )  # fmt: skip
    detail: float = option(
        0.85, "Detail",
        "How much of what the prior adds is kept: 0 = only what the photo supports (softer, surest), 1 = all of it (crispest).",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for f in fields(self):
            check(f, getattr(self, f.name))
        self.face_indices()
        if self.max_face and self.max_face < self.min_face:
            raise SettingsError(
                f"max_face: expected 0 or at least min_face ({self.min_face}), got {self.max_face}; raise it or lower min_face"
            )

    def face_indices(self) -> tuple[int, ...]:
        """``faces`` parsed: () means all. Raises SettingsError when it is not a comma-separated list of numbers >= 0."""
        parts = [part.strip() for part in self.faces.split(",") if part.strip()]
        if not all(part.isdecimal() and part.isascii() for part in parts):
            raise SettingsError(f"faces: expected numbers from 0 separated by commas, such as '0,2', got {self.faces!r}")
        return tuple(int(part) for part in parts)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RestoreSettings:
        """Settings from a mapping; unknown keys raise SettingsError naming the nearest known one."""
        return cls(**values)


def check_names(values: Iterable[str], known: Sequence[str]) -> None:
    """Raise SettingsError for the first name that is not ``known``, naming the nearest known one."""
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
            raise SettingsError(f"unknown setting {name!r}; {hint}")


def options() -> dict[str, tuple[Option, Any]]:
    """Setting name -> (Option, default), in declaration order: what every interface draws its widgets from."""
    return {f.name: (f.metadata["option"], f.default) for f in fields(RestoreSettings)}


def check(f: Field[Any], value: Any) -> None:
    """Raise SettingsError unless ``value`` is right for a field declared with :func:`option`."""
    known: Option = f.metadata["option"]
    kind = type(f.default)
    number = kind in (int, float)
    right = isinstance(value, (int, float) if kind is float else kind) and not (number and isinstance(value, bool))
    if not right:
        raise SettingsError(f"{f.name}: expected {kind.__name__}, got {value!r}")
    if known.choices is not None and value not in known.choices:
        raise SettingsError(f"{f.name}: expected one of {', '.join(known.choices)}, got {value!r}")
    if not number or known.low is None or known.high is None:
        return
    if not known.low <= value <= known.high:  # NaN is nowhere
        raise SettingsError(f"{f.name}: expected {known.low} to {known.high}, got {value!r}")
