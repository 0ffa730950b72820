"""The picture terms of a stage: what its latents look like, whole or in windows, against the photo's own pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lafr_core.errors import InputError
from lafr_core.types import Vae
from train.config import Config, Loss
from train.data.windows import Decode, cut, decoded, inner, window_mean
from train.judges.losses import FACE_TERMS, LOCAL_TERMS, WHOLE_TERMS, Critics, picture_terms
from train.judges.thumbnail import ThumbnailNet, open_thumbnail


class Shown:
    """Decodes what a stage made and weighs how it looks.

    Whole faces are decoded and judged by every term. With data.window only windows are, by the local terms; identity then
    looks at thumbnails of the whole face (models.thumbnail). Raises InputError for terms that nothing can show.
    """

    def __init__(self, config: Config, decoders: list[Decode | None], device: torch.device) -> None:
        self.config, self.decoders = config, decoders
        self.windows = bool(config.data.pairs) and config.data.window > 0
        self.thumbnail: ThumbnailNet | None = None
        weights = config.loss
        wanted = [name for name in WHOLE_TERMS if getattr(weights, name) > 0] if self.windows else []
        hidden = [name for name in wanted if name not in FACE_TERMS or not config.models.thumbnail]
        if hidden:
            raise InputError(
                f"loss.{hidden[0]}: wants whole faces, and data.window decodes windows only; set data.window 0, "
                f"or the term to 0{', or give models.thumbnail' if hidden[0] in FACE_TERMS else ''}"
            )
        if wanted:
            self.thumbnail = open_thumbnail(Path(config.models.thumbnail)).to(device)

    def terms(
        self, latents: Tensor, batch: Mapping[str, Tensor], critics: Critics, clean: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of ``latents``: (B, C, h, w) of whole faces, or what data.around cut out of them (B*W, C, s, s).

        ``clean``: the clean latents, cut alike; windows and the sharpness term need them.
        """
        weights, data = self.config.loss, self.config.data
        if not critics.needed(weights):
            return {}
        if not self.windows:
            own = self._own(clean, weights)
            return picture_terms(self._decode(latents), batch["hq"], critics, weights, own=own)
        if clean is None:
            raise InputError("windows: expected the clean latents beside those to show, got none; pass both")
        terms: dict[str, Tensor] = {}
        if any(getattr(weights, name) > 0 for name in LOCAL_TERMS):
            parts = [self._window(z, batch) for z in (latents, clean)]
            groups = decoded(parts[0], parts[1], batch, data, self.decoders, own=weights.sharpness > 0)
            found = [picture_terms(g.restored, g.sharp, critics, weights, names=LOCAL_TERMS, own=g.own) for g in groups]
            terms = {name: window_mean(groups, [f[name] for f in found]) for name in (found[0] if found else ())}
        if self.thumbnail is not None:
            ours, theirs = self.thumbnail(latents), self.thumbnail(clean)
            terms |= picture_terms(ours.float(), theirs.float(), critics, weights, names=FACE_TERMS)
        return terms

    def _window(self, latents: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        data = self.config.data
        if len(latents) == len(batch["corner"]) and latents.shape[-1] > max(data.window, data.around):
            return cut(latents, batch["corner"], data.window)
        return inner(latents, data.window)

    def _decode(self, latents: Tensor) -> Tensor:
        decode = self.decoders[0]
        assert decode is not None
        return decode(latents)

    def _own(self, clean: Tensor | None, weights: Loss) -> Tensor | None:
        if clean is None or weights.sharpness == 0:
            return None
        with torch.no_grad():
            return self._decode(clean)


def latents_of(batch: Mapping[str, Tensor], vae: Vae) -> tuple[Tensor, Tensor]:
    """The degraded and the clean latents of a batch: stored ones as they are, else encoded here, without gradient."""
    if "z_hq" in batch:
        return batch["z_lq"], batch["z_hq"]
    with torch.no_grad():
        return vae.encode(batch["lq"]), vae.encode(batch["hq"])
