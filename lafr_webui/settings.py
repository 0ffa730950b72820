"""What the webui asks beyond :class:`~lafr_core.settings.RestoreSettings`, and both records together.

The panel, the settings page, the API and the infotext line are all drawn from :func:`options`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lafr_core import settings as core
from lafr_core.errors import SettingsError
from lafr_core.pipeline import REFERENCE_WEIGHT
from lafr_core.settings import Option, RestoreSettings, option
from lafr_core.video.settings import ClipSettings

ENGINES = ("starter", "checkpoint")
_BEST_FRAMES = next(f for f in fields(ClipSettings) if f.name == "best_frames")
"""The option of clips, whose words and limits hold for a batch of frames too."""


@dataclass(frozen=True)
class EngineSettings:
    """Which networks restore, and how. Raises SettingsError for a value out of bounds."""

    engine: str = option(
        "starter", "Engine",
        "starter = LAFR's own small networks, one step, need no checkpoint; checkpoint = VAE and UNet of the loaded SD 1.x/2.x "
        "checkpoint, starter when there is none.",
        choices=ENGINES,
    )  # fmt: skip
    identity: float = option(
        REFERENCE_WEIGHT, "Reference weight",
        f"How much the reference photo lends to the face it shows: 0 = nothing, {REFERENCE_WEIGHT:g} = the default, by "
        "measurement, 1 = all it can. Does nothing without a reference photo.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    timestep: int = option(
        399,
        "Timestep",
        "Checkpoint with one step: the noise level at which the UNet looks at the face.",
        low=1,
        high=998,
        step=1,
    )
    steps: int = option(
        1, "Steps", "Checkpoint: 1 = a single UNet step at the timestep, more = noise is added and taken away again.",
        low=1, high=50, step=1,
    )  # fmt: skip
    denoise: float = option(
        0.3, "Denoise", "Checkpoint with several steps: how much noise is added; higher changes the face more.",
        low=0.05, high=1.0, step=0.05,
    )  # fmt: skip
    seed: int = option(0, "Seed", "Checkpoint with several steps: which noise is added.", low=0, high=2**32 - 1, step=1)
    lora: str = option(
        "", "LoRA", "Checkpoint: name of a LoRA in the webui's Lora folder, such as one made by LAFR's training. Empty = none."
    )
    steadiness: float = option(
        0.0, "Steadiness",
        "Batch from Directory: the pictures are the frames of one clip, file order is time; faces are followed and held still. "
        "0 = every picture on its own, 0.7 = what LAFR uses for clips, 1 = steadiest. Leave Upscale off with it.",
        low=0.0, high=1.0, step=0.05,
    )  # fmt: skip
    best_frames: float = field(default=ClipSettings.best_frames, metadata=_BEST_FRAMES.metadata)

    def __post_init__(self) -> None:
        for f in fields(self):
            core.check(f, getattr(self, f.name))


@dataclass(frozen=True)
class Request:
    """Everything one restoration is told, but for the reference photo."""

    restore: RestoreSettings = field(default_factory=RestoreSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Request:
        """A request from flat names, as widgets and JSON give them.

        A value of None means the default: the host's extras API calls scripts that way. Whole floats are taken for ints and
        back, because sliders and JSON do not tell them apart. Unknown names and wrong values raise SettingsError.
        """
        known = options()
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
                raise SettingsError(f"unknown setting {name!r}; {hint}")
        given = {name: _as_kind(value, known[name][1]) for name, value in values.items() if value is not None}
        engine = {f.name for f in fields(EngineSettings)}
        return cls(
            RestoreSettings(**{name: value for name, value in given.items() if name not in engine}),
            EngineSettings(**{name: value for name, value in given.items() if name in engine}),
        )

    def as_mapping(self) -> dict[str, Any]:
        """Flat name -> value. Inverse of :meth:`from_mapping`."""
        return {f.name: getattr(record, f.name) for record in (self.engine, self.restore) for f in fields(record)}

    def changed(self) -> dict[str, Any]:
        """The values that differ from their defaults."""
        known = options()
        return {name: value for name, value in self.as_mapping().items() if value != known[name][1]}


def options() -> dict[str, tuple[Option, Any]]:
    """Setting name -> (Option, default): the engine's first, then :func:`lafr_core.settings.options`."""
    engine = {f.name: (f.metadata["option"], f.default) for f in fields(EngineSettings)}
    return {**engine, **core.options()}


def _as_kind(value: Any, default: Any) -> Any:
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(default) is float and type(value) is int:
        return float(value)
    return value
