"""ComfyUI inputs drawn from :class:`RestoreSettings`, and schemas that leave out what this host does not know."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from ..lafr_core.latent.prediction import TIMESTEPS
from ..lafr_core.latent.sd_prior import TIMESTEP
from ..lafr_core.pipeline import REFERENCE_WEIGHT
from ..lafr_core.settings import Option, options

CATEGORY = "LAFR"
ESSENTIALS = "Image Tools"
"""The tab of newer hosts where people look first; one of the host's own headings."""
VIDEO_TOOLS = "Video Tools"
"""The same for videos."""

FACES = io.Custom("LAFR_FACES")
"""A :class:`~.faces.FaceSet`: the faces of a batch of photos and their crops."""
ADAPTER = io.Custom("LAFR_ADAPTER")
"""A :class:`~.memory.Managed` aligner."""
BOUNDING_BOX = io.Custom("BOUNDING_BOX")
"""ComfyUI's own box type, by name: older hosts have no class for it, but nodes that make it."""


def boxes_input() -> Any:
    """The optional input of face boxes, as a socket on every host.

    On newer hosts (seen on 0.33) a BOUNDING_BOX without ``forceInput`` is a widget, and an untouched node sends its default of
    {0, 0, 512, 512}: a box that nobody drew. Older hosts ignore the word.
    """
    return BOUNDING_BOX.Input(
        "bounding_boxes",
        optional=True,
        tooltip="Face boxes from another node; they replace the search. A box that covers no face is reported.",
        extra_dict={"forceInput": True},
    )


def reference_weight_input(lend_to: str) -> Any:
    """How much references count; ``lend_to`` ends the sentence of the tooltip."""
    return make(
        io.Float.Input,
        "reference_weight",
        display_name="Reference weight",
        default=REFERENCE_WEIGHT,
        min=0.0,
        max=1.0,
        step=0.05,
        advanced=True,
        tooltip=f"How much connected references lend to the {lend_to}. 0 = nothing.",
    )


def keep_input() -> Any:
    """The optional mask of what stays as it is in the photos."""
    return io.Mask.Input(
        "keep",
        optional=True,
        tooltip="White = leave the photo as it is there: hands, microphones, hair, glasses. From any mask or segmenting node.",
    )


def make(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """``kind(...)`` without the keyword arguments that this host's version of it does not take.

    ``advanced`` reaches the frontend on every host: older ones know the word there, and only their Python does not.
    """
    known = inspect.signature(kind).parameters
    made = kind(*args, **{name: value for name, value in kwargs.items() if name in known})
    if kwargs.get("advanced") and "advanced" not in known and isinstance(getattr(made, "extra_dict", None), dict):
        made.extra_dict["advanced"] = True
    return made


def schema(
    node_id: str, name: str, description: str, inputs: list[Any], outputs: list[Any], aliases: list[str], **more: Any
) -> Any:
    """One node's schema in the pack's category; ``more``: essentials_category and whatever else this host's schema knows."""
    return make(
        io.Schema,
        node_id=node_id,
        display_name=name,
        category=CATEGORY,
        description=description,
        inputs=inputs,
        outputs=outputs,
        search_aliases=aliases,
        **more,
    )


def setting(name: str, *, advanced: bool = False) -> Any:
    """The input for one field of :class:`RestoreSettings`: its default, bounds, label and help."""
    return drawn(name, *options()[name], advanced=advanced)


def drawn(name: str, option: Option, default: Any, *, advanced: bool = False) -> Any:
    """The input for a setting of any record: the widget of its kind with its default, bounds, label and help."""
    shown: dict[str, Any] = {"display_name": option.label, "tooltip": option.help, "default": default, "advanced": advanced}
    if option.choices is not None:
        return make(io.Combo.Input, name, options=list(option.choices), **shown)
    if isinstance(default, bool):
        return make(io.Boolean.Input, name, **shown)
    if isinstance(default, int):
        return make(io.Int.Input, name, min=option.low, max=option.high, step=option.step, **shown)
    if isinstance(default, float):
        return make(io.Float.Input, name, min=option.low, max=option.high, step=option.step, **shown)
    return make(io.String.Input, name, multiline=False, **shown)


def settings_inputs(names: tuple[str, ...], advanced: tuple[str, ...] = ()) -> list[Any]:
    return [setting(name, advanced=name in advanced) for name in names]


def timestep_input(*, advanced: bool = False) -> Any:
    """The timestep of one-step restoration by a MODEL: no field of the settings, which know no MODEL."""
    return make(
        io.Int.Input,
        "timestep",
        display_name="Timestep",
        default=TIMESTEP,
        min=0,
        max=TIMESTEPS - 1,
        step=1,
        advanced=advanced,
        tooltip="The timestep at which a MODEL restores in one step: that of its LoRA's training. The starter takes none.",
    )
