"""LAFR_RestoreFaces: the whole job in one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..lafr_core import heap
from ..lafr_core.errors import CheckpointError, InputError
from ..lafr_core.faces.people import meet
from ..lafr_core.models import prior_note
from ..lafr_core.pipeline import References, restore_faces
from ..lafr_core.settings import RestoreSettings, options
from ..lafr_core.types import Models, Person
from .host import CONNECT, SD, HostVae, check_model, check_vae, raw_latent
from .layout import to_boxes, to_image, to_images, to_keep
from .lora import FewSteps, has_lafr_lora, without_lora
from .memory import Managed, host_progress, say, telling
from .networks import open_adapter, open_detector, open_embedder, open_parser, open_prior, open_starter_vae
from .readout import before_after, report_text
from .sample import empty_text, few_steps, noise_of, one_step
from .starter import StarterHostVae, is_starter
from .widgets import (
    ADAPTER,
    ESSENTIALS,
    boxes_input,
    keep_input,
    reference_weight_input,
    schema,
    settings_inputs,
    timestep_input,
)

FIRST = (
    "detector", "threshold", "min_face", "max_face", "sort", "top_k", "faces", "rotate", "detect_side", "small_faces",
    "fidelity", "strength", "mask", "feather", "color", "grain", "identity_warning", "batch_size", "detail",
)  # fmt: skip
"""The settings whose widgets stand before the node's own, in the order of saved workflows. Later settings stand at the end."""
UNFOLDED = ("threshold", "faces", "fidelity", "strength", "mask", "detail")
"""What most people touch; the other widgets are folded away."""


def later() -> tuple[str, ...]:
    """The settings that came after :data:`FIRST`."""
    return tuple(name for name in options() if name not in FIRST)


def folded(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in UNFOLDED)


class HostPrior:
    """A ComfyUI MODEL behind :class:`~lafr_core.types.Prior`, with the empty text: one evaluation at a timestep where a LAFR
    LoRA lies on the MODEL, else a few steps from the aligned latent."""

    def __init__(self, model: Any, timestep: int) -> None:
        self.model, self.timestep, self.spec = model, timestep, SD
        self.text = empty_text(model)
        self.few = None if has_lafr_lora(model) else FewSteps()

    def __call__(self, latents: Tensor) -> Tensor:
        latent = raw_latent(latents)
        if self.few is None:
            raw = one_step(self.model, latent, self.timestep, self.text, self.text)
        else:
            # One noise for every face: the result of a face does not depend on its neighbours.
            noise = noise_of({**latent, "batch_index": [0] * len(latents)}, self.few.seed)
            few = self.few
            raw = few_steps(
                self.model,
                latent,
                noise,
                few.steps,
                few.sampler_name,
                few.scheduler,
                few.denoise,
                few.seed,
                self.text,
                self.text,
                1.0,
            )
        return self.spec.to_scaled(raw).to(latents)

    @property
    def note(self) -> str:
        """What a person should know of this MODEL; '' = nothing."""
        return "" if self.few is None else without_lora(self.few.steps, self.few.denoise)


def model_inputs() -> list[Any]:
    """What may be connected instead of the starter networks."""
    return [
        io.Model.Input(
            "model",
            optional=True,
            tooltip="An SD 1.5 or 2.1 MODEL: one step with a LAFR LoRA, else a few. Not connected = the starter prior.",
        ),
        io.Vae.Input(
            "vae", optional=True, tooltip="An SD 1.x/2.x VAE. Not connected = the starter VAE, which is small and fast."
        ),
        ADAPTER.Input("adapter", optional=True, tooltip="Not connected = the starter adapter."),
    ]


class RestoreFaces(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_RestoreFaces",
            "Restore Faces (LAFR)",
            "Finds, restores and pastes back every face of the photos. Needs no checkpoint; connect one to restore with it.",
            [
                io.Image.Input("image", tooltip="One photo or a batch of photos of one size."),
                *settings_inputs(FIRST, advanced=folded(FIRST)),
                timestep_input(advanced=True),
                reference_weight_input("faces"),
                *settings_inputs(later(), advanced=folded(later())),
                *model_inputs(),
                boxes_input(),
                keep_input(),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Good photos of one person. Faces like theirs get back what restoration lost of the person.",
                ),
            ],
            [
                io.Image.Output(
                    "restored",
                    display_name="image",
                    tooltip="As many photos as came in, same sizes, same order. No face = unchanged.",
                ),
                io.Image.Output("sheet", display_name="before/after", tooltip="Every face before and after, side by side."),
                io.String.Output("report", display_name="report", tooltip="What was found and how alike each face stayed."),
            ],
            ["face restore", "restore faces", "codeformer", "gfpgan", "face enhance", "fix face", "old photo", "blurry face"],
            essentials_category=ESSENTIALS,
        )

    @classmethod
    @heap.trimmed()
    def execute(
        cls,
        image: Tensor,
        timestep: int,
        reference_weight: float,
        model: Any = None,
        vae: Any = None,
        adapter: Managed | None = None,
        bounding_boxes: Any = None,
        keep: Tensor | None = None,
        references: Tensor | None = None,
        **values: Any,
    ) -> Any:
        settings, models, mask_note = prepared(values, timestep, model, vae, adapter)
        images = to_images(image)
        boxes = to_boxes(bounding_boxes, images.shape[0])
        progress = telling(host_progress())
        people = () if references is None else (person(references, models, settings),)
        result = restore_faces(
            images,
            models,
            settings,
            boxes=boxes,
            keep=to_keep(keep, images),
            references=References(people, reference_weight),
            progress=progress,
        )
        report = told(report_text(result, settings, models.device), models, mask_note)
        return io.NodeOutput(to_image(result.images, like=image), to_image(before_after(images, result)), report)


def prepared(
    values: Mapping[str, Any], timestep: int, model: Any, vae: Any, adapter: Managed | None
) -> tuple[RestoreSettings, Models, str]:
    """The settings that the widgets name, the models of one run, and a note on the mask ('' = none)."""
    settings, parser, mask_note = open_parser(RestoreSettings(**values))
    return settings, replace(open_models(settings, timestep, model, vae, adapter), parser=parser), mask_note


def told(text: str, models: Models, mask_note: str) -> str:
    """The report of a run that is over: what became of it and the notes on its models, printed too."""
    model_note = models.prior.note if isinstance(models.prior, HostPrior) else ""
    report = "\n".join(filter(None, (text, prior_note(models), model_note, mask_note)))
    say(report)
    return report


def person(references: Tensor, models: Models, settings: RestoreSettings) -> Person:
    """The person in a batch of good photos. Raises InputError when none shows a face, CheckpointError without an embedder."""
    if models.embedder is None:
        raise CheckpointError("references: expected a face embedder, found none; install the pack again or disconnect them")
    return meet("reference", list(to_images(references)), models.detector, models.embedder, settings)


def open_models(settings: RestoreSettings, timestep: int, model: Any, vae: Any, adapter: Managed | None) -> Models:
    """The models of one run: the connected ones, and the starter's for the rest.

    The adapter says which family it is all about. The starter prior is SD's: other families do without a prior.
    """
    spec = SD if adapter is None else adapter.spec
    if spec != SD and (vae is None or model is not None):
        raise InputError(
            f"adapter: it is for {spec.name} latents, the starter's VAE and every MODEL of this node for sd latents; "
            f"connect {CONNECT[spec.name]} and no MODEL"
        )
    if vae is not None:
        check_vae(vae, spec)
    if model is not None:
        check_model(model)
    prior: Any = None
    if spec == SD:
        prior = open_prior() if model is None or is_starter(model) else HostPrior(model, timestep)
    return Models(
        detector=open_detector(settings.detector),
        vae=HostVae(vae if vae is not None else StarterHostVae(open_starter_vae()), spec),
        aligner=adapter if adapter is not None else open_adapter(None),
        prior=prior,
        embedder=open_embedder(),
        device=mm.get_torch_device(),
    )
