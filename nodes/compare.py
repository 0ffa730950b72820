"""LAFR_Compare: before and after, as the host shows it best."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lafr_core.errors import InputError
from ..lafr_core.images.photos import from_pil
from ..lafr_core.images.sheet import Row, sheet
from .layout import to_image, to_images
from .memory import say
from .widgets import ESSENTIALS, schema

MOST = 12
"""A sheet of more photos than this would be too tall to look at."""


def slider() -> list[Any]:
    """The host's interactive before/after widget, on hosts that have one."""
    kind = getattr(io, "ImageCompare", None)
    return [] if kind is None else [kind.Input("compare_view", optional=True, tooltip="Before and after, under a slider.")]


class Compare(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_Compare",
            "Compare Before/After (LAFR)",
            "Shows photos before and after side by side, and under a slider where ComfyUI has one. Shows the report as text.",
            [
                io.Image.Input("before", tooltip="The photos as they came."),
                io.Image.Input("after", tooltip="The same photos restored: as many, of the same size."),
                io.String.Input(
                    "report", optional=True, force_input=True, tooltip="Text to show in the node: Restore Faces' report."
                ),
                *slider(),
            ],
            [
                io.Image.Output(
                    "sheet", display_name="sheet", tooltip="All pairs side by side, with a piece of each at full size."
                )
            ],
            ["before after", "compare images", "slider", "side by side"],
            essentials_category=ESSENTIALS,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: Tensor, after: Tensor, report: str | None = None, **view: Any) -> Any:
        pairs = to_images(before), to_images(after)
        if len(pairs[0]) != len(pairs[1]):
            raise InputError(f"after: expected as many photos as before ({len(pairs[0])}), got {len(pairs[1])}")
        page = to_image(_sheet(*pairs))
        if report:
            say(report)
        # The sheet always: the host's slider is drawn by Nodes 2.0 alone, and on the classic canvas nothing else would show.
        shown = {"images": ui.PreviewImage(page).values}
        if slider():
            shown |= {
                f"{side}_images": ui.PreviewImage(to_image(photos)).values for side, photos in zip("ab", pairs, strict=True)
            }
        return io.NodeOutput(page, ui=shown)


def _sheet(before: Tensor, after: Tensor) -> Tensor:
    """(1, 3, H, W): the first pairs side by side; the last label says how many are left out."""
    rows = [Row(f"photo {index}", pair) for index, pair in enumerate(zip(before[:MOST], after[:MOST], strict=True))]
    if len(before) > MOST:
        rows[-1] = Row(f"{rows[-1].label} (and {len(before) - MOST} photos more)", rows[-1].pictures)
    return torch.stack([from_pil(sheet(("before", "after"), rows)).pixels])
