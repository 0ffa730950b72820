"""The empty prompt's embedding, computed from the text encoder inside a Stable Diffusion file, without tokenizer or package.

CLIP's text transformer (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021):
pre-norm blocks with causal attention, heads of 64 channels. SD 1.x holds OpenAI's ViT-L/14 in Hugging Face's names and takes
its last layer; SD 2.x holds OpenCLIP's ViT-H/14 in OpenCLIP's names and takes the last but one (stablediffusion's
``FrozenOpenCLIPEmbedder``, layer "penultimate").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

BEGIN, END, TOKENS = 49406, 49407, 77
"""Of CLIP's vocabulary: what opens and closes a text, and how long every text is made."""
HEAD = 64
"""Channels of an attention head in both encoders."""
ROOTS = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.", "text_model.")
OPEN_ROOT = "cond_stage_model.model."


def empty_prompt(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The embedding (1, 77, width) float32 of "", or None where the file holds no text encoder that we know."""
    if f"{OPEN_ROOT}token_embedding.weight" in tensors:
        # open_clip pads with 0. The last block is left out: the penultimate layer is what SD 2.x was trained with.
        names = {name.removeprefix(OPEN_ROOT): t.float() for name, t in tensors.items() if name.startswith(OPEN_ROOT)}
        count = 1 + max(int(name.split(".")[2]) for name in names if name.startswith("transformer.resblocks."))
        return _encode(_from_openclip(names), count - 1, padding=0, quick=False)
    for root in ROOTS:
        if f"{root}embeddings.token_embedding.weight" in tensors:
            names = {name.removeprefix(root): t.float() for name, t in tensors.items() if name.startswith(root)}
            count = 1 + max(int(name.split(".")[2]) for name in names if name.startswith("encoder.layers."))
            return _encode(names, count, padding=END, quick=True)
    return None


def _encode(w: Mapping[str, Tensor], layers: int, *, padding: int, quick: bool) -> Tensor:
    """The final-normed output (1, 77, width) of the first ``layers`` blocks, weights in Hugging Face's names."""
    tokens = torch.tensor([BEGIN, END] + [padding] * (TOKENS - 2))
    x = (w["embeddings.token_embedding.weight"][tokens] + w["embeddings.position_embedding.weight"])[None]
    for number in range(layers):
        name = f"encoder.layers.{number}."
        linear = lambda y, part, name=name: F.linear(y, w[f"{name}{part}.weight"], w[f"{name}{part}.bias"])
        norm = lambda y, part, name=name: F.layer_norm(y, y.shape[-1:], w[f"{name}{part}.weight"], w[f"{name}{part}.bias"])
        y = norm(x, "layer_norm1")
        q, k, v = (_heads(linear(y, f"self_attn.{part}_proj")) for part in "qkv")
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(seen.transpose(1, 2).flatten(2), "self_attn.out_proj")
        y = linear(norm(x, "layer_norm2"), "mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y) if quick else F.gelu(y), "mlp.fc2")
    return F.layer_norm(x, x.shape[-1:], w["final_layer_norm.weight"], w["final_layer_norm.bias"])


def _heads(x: Tensor) -> Tensor:
    """(1, T, width) -> (1, heads, T, HEAD)."""
    return x.unflatten(2, (-1, min(HEAD, x.shape[-1]))).transpose(1, 2)


def _from_openclip(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names in Hugging Face's words."""
    out = {
        "embeddings.token_embedding.weight": names["token_embedding.weight"],
        "embeddings.position_embedding.weight": names["positional_embedding"],
        "final_layer_norm.weight": names["ln_final.weight"],
        "final_layer_norm.bias": names["ln_final.bias"],
    }
    words = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for name, tensor in names.items():
        if not name.startswith("transformer.resblocks."):
            continue
        number, part = name.removeprefix("transformer.resblocks.").split(".", 1)
        layer = f"encoder.layers.{number}."
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{layer}self_attn.{letter}_proj.{kind}"] = piece
        elif part.startswith("attn.out_proj."):
            out[f"{layer}self_{part}"] = tensor
        else:
            word, kind = part.rsplit(".", 1)
            out[f"{layer}{words[word]}.{kind}"] = tensor
    return out
