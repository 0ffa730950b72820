"""The checkpoint that is loaded in the webui, whichever webui it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lafr_core.errors import CheckpointError
from lafr_core.types import Vae

from . import a1111, forge
from .sampling import Denoiser


@dataclass(frozen=True)
class Checkpoint:
    """The two halves of a checkpoint that LAFR borrows."""

    vae: Vae
    denoiser: Denoiser


@contextlib.contextmanager
def checkpoint(lora: str = "") -> Iterator[Checkpoint]:
    """The loaded SD 1.x/2.x checkpoint, with LoRA ``lora`` applied and the last generation's left out.

    Loads it when the webui has not done so yet. Raises CheckpointError when there is none, it is of another family, or this
    webui holds it in a way that LAFR does not know.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(_opened(lora))
        except CheckpointError:
            raise
        except Exception as error:  # forks of forks: whatever they changed must not cost the user the restoration
            kind = type(error).__name__
            raise CheckpointError(f"checkpoint: this webui holds it in a way LAFR does not know ({kind}: {error})") from error
        yield opened


@contextlib.contextmanager
def _opened(lora: str) -> Iterator[Checkpoint]:
    sd_model = forge.current_model() if is_forge() else _model()
    if getattr(sd_model, "forge_objects", None) is not None or is_forge():
        forge.check(sd_model)
        objects = forge.pristine(sd_model)
        unet = forge.with_lora(objects.unet, lora)
        yield Checkpoint(forge.ForgeVae(objects.vae), forge.ForgeDenoiser(unet, forge.empty_prompt(sd_model)))
        return
    a1111.check(sd_model)
    with a1111.only_lora(lora):
        yield Checkpoint(a1111.A1111Vae(sd_model), a1111.A1111Denoiser(sd_model))


def is_forge() -> bool:
    """Whether this webui loads its checkpoints as Forge and Neo do; reForge and Classic load theirs as A1111 does."""
    from modules import sd_models

    return hasattr(sd_models, "forge_model_reload")


def _model() -> Any:
    from modules import shared

    try:
        return shared.sd_model  # loads it on first use
    except (Exception, SystemExit) as error:  # versions before 1.6 call exit() where there is no checkpoint at all
        raise CheckpointError(f"checkpoint: the webui cannot load one ({error}); choose an SD 1.x/2.x checkpoint") from error
