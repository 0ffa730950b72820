"""A diffusion UNet whose timestep and text never change, without the branches that compute them.

LAFR runs the UNet at one timestep with the empty prompt (arXiv 2505.23462, "pruned UNet"). The time embedding then adds the
same vector to every residual block, and the cross-attention keys and values are the same matrices each time: both are
computed once and put into the weights. Nothing is approximated.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError

FURTHER_CONDITIONS = (
    "class_embed_type",
    "addition_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "timestep_post_act",
    "center_input_sample",
)
"""Config entries of a diffusers UNet that feed it more than a timestep and a text."""


class ConstantCrossAttention(nn.Module):
    """Cross-attention with constant keys and values: only the query is computed. Tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, attention: nn.Module, context: Tensor) -> None:
        super().__init__()
        self.heads: int = attention.heads  # type: ignore[assignment]
        self.to_q = attention.to_q
        self.out = attention.to_out[0]  # type: ignore[index]
        with torch.no_grad():
            self.register_buffer("key", self._split(attention.to_k(context)))  # type: ignore[operator]
            self.register_buffer("value", self._split(attention.to_v(context)))  # type: ignore[operator]

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, heads * d) -> (B, heads, N, d)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        batch = hidden_states.shape[0]
        query = self._split(self.to_q(hidden_states))  # type: ignore[operator]
        key, value = (t.expand(batch, -1, -1, -1) for t in (self.key, self.value))  # type: ignore[operator]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[operator]


class FoldedUNet(nn.Module):
    """Latents (B, C, H, W) -> the network's prediction (B, C, H, W), at the timestep and context it was folded with.

    Holds the blocks of a diffusers UNet2DConditionModel; made by :func:`fold_constants` only.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.conv_in, self.mid_block = unet.conv_in, unet.mid_block
        self.down_blocks, self.up_blocks = unet.down_blocks, unet.up_blocks
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)  # type: ignore[operator]
        skips: tuple[Tensor, ...] = (x,)
        for block in self.down_blocks:  # type: ignore[union-attr]
            x, more = block(hidden_states=x, temb=None)
            skips += more
        if self.mid_block is not None:
            x = self.mid_block(x, None)  # type: ignore[operator]
        for block in self.up_blocks:  # type: ignore[union-attr]
            count = len(block.resnets)  # type: ignore[arg-type]
            own, skips = skips[-count:], skips[:-count]
            # Latents that do not halve evenly: upsample to the size the next skip has, not to twice one's own.
            size = skips[-1].shape[2:] if skips else None
            x = block(hidden_states=x, temb=None, res_hidden_states_tuple=own, upsample_size=size)
        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))  # type: ignore[operator]
        return self.conv_out(x)  # type: ignore[operator]


@torch.no_grad()
def fold_constants(unet: nn.Module, timestep: int, context: Tensor) -> FoldedUNet:
    """The UNet as a function of the latent alone, for inference.

    unet: diffusers ``UNet2DConditionModel`` of the SD 1.x/2.x kind, with or without peft LoRA layers; left as it is, the
    unchanged weights are shared. context: (1, tokens, width), the text embedding. Output equals ``unet(x, timestep,
    context).sample`` up to rounding (<= 1e-4 in float32). Raises InputError for a context of another width and for UNets with
    further conditions (class labels, SDXL's added embeddings, scale-shift time embeddings).
    """
    config: Any = unet.config
    if context.ndim != 3 or context.shape[0] != 1 or context.shape[2] != _context_width(unet):
        raise InputError(f"fold_constants: expected a context (1, tokens, {_context_width(unet)}), got {tuple(context.shape)}")
    extra = [name for name in FURTHER_CONDITIONS if config.get(name)]
    if extra or config.get("resnet_time_scale_shift", "default") != "default":
        found = ", ".join(extra) or "scale-shift time embeddings"
        raise InputError(f"fold_constants: expected a UNet of the SD 1.x/2.x kind, got one with {found}")
    # Parameters go into the memo as themselves: the copy has its own modules but shares every tensor.
    folded = copy.deepcopy(unet, {id(p): p for p in (*unet.parameters(), *unet.buffers())})
    first = next(unet.parameters())
    time = folded.time_proj(torch.tensor([timestep], device=first.device)).to(first.dtype)  # type: ignore[operator]
    embedding = folded.time_embedding(time)  # type: ignore[operator]
    context = context.to(first)
    for module in folded.modules():
        if getattr(module, "time_emb_proj", None) is not None:
            _fold_time(module, embedding)
        if getattr(module, "attn2", None) is not None:
            module.attn2 = ConstantCrossAttention(module.attn2, context)  # type: ignore[arg-type]
    return FoldedUNet(folded).eval().requires_grad_(False)


def _fold_time(block: Any, embedding: Tensor) -> None:
    """Move a residual block's time vector into the bias of its first convolution."""
    if block.time_embedding_norm != "default":
        raise InputError(f"fold_constants: cannot fold a {block.time_embedding_norm!r} time embedding")
    shift = block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))[0]
    conv = getattr(block.conv1, "base_layer", block.conv1)  # peft wraps the convolution it adapts
    conv.bias = nn.Parameter(shift.clone() if conv.bias is None else conv.bias + shift, requires_grad=False)
    block.time_emb_proj = None


def _context_width(unet: Any) -> int:
    width = unet.config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])
