"""How much memory training takes at 512 pixels, by stage, precision and batch, without a GPU and without computing anything.

    python -m benchmarks.memory [--batches 1 4] [--out docs/training_memory.md]

Every stage's forward pass runs on torch's meta device at full size (Stable Diffusion 2.1's UNet and VAE), where tensors have
shapes but no values, and autograd's saved tensors are counted: each storage once, parameters left out. Added are weights,
gradients and AdamW's two moments of what learns. That is a lower bound: what a library's kernels need beside it (workspaces,
fragmentation) is not in it, nor are the judging networks. A stage's networks are taken as all of its precision, as autocast has
their activations. With checkpointing the saved tensors are the blocks' inputs; a block's own come back while it is recomputed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.fold import SD21
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.vae import _SD_VAE
from train.config import PriorStage
from train.engine.parts import add_lora
from train.precision import DTYPES

GIB = 2**30
META = torch.device("meta")


class Row(NamedTuple):
    """One line of the table, in bytes."""

    weights: int
    learned: int
    """Gradients and moments of what learns, float32."""
    saved: int
    """Activations kept for the backward pass."""


def saved_bytes(forward: Callable[[], Any], kept: nn.Module) -> int:
    """The bytes that autograd holds after ``forward``, each storage once, the parameters and buffers of ``kept`` left out."""
    own = {t.untyped_storage()._cdata for t in (*kept.parameters(), *kept.buffers())}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen.setdefault(storage._cdata, tensor)  # held, so that no later storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(t.untyped_storage().nbytes() for t in seen.values())


def size(module: nn.Module, only: bool = False) -> int:
    """Bytes of a module's parameters; ``only`` those that learn."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not only)


def codebook_or_adapter(batch: int, precision: str, decode: bool) -> Row:
    """Stages codebook and adapter on stored latents; with ``decode`` the picture terms look at whole decoded faces."""
    dtype = DTYPES[precision]
    with META:
        network, vae = AdapterNet(), kl_vae()
    weights, learned = size(network) + (size(vae) if decode else 0), 3 * size(network, only=True)
    both = nn.ModuleList([network, vae]).to(dtype)  # autocast knows no meta device
    z, fidelity = (torch.zeros(batch, *shape, device=META, dtype=dtype) for shape in ((4, 64, 64), (1, 1, 1)))

    def forward() -> Any:
        aligned = network(z, fidelity).latents
        return vae.decode(aligned).sample if decode else aligned

    return Row(weights, learned, saved_bytes(forward, both))


def prior(batch: int, precision: str, decode: bool, checkpointing: bool) -> Row:
    """Stage prior: the UNet with its LoRA, frozen weights in the stage's precision."""
    from diffusers import UNet2DConditionModel

    with META:
        unet: Any = UNet2DConditionModel(**SD21).to(DTYPES[precision])
        add_lora(unet, PriorStage())
        vae = kl_vae().to(DTYPES[precision])
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    z = torch.zeros(batch, 4, 64, 64, device=META, dtype=DTYPES[precision])
    t, context = torch.zeros(batch, dtype=torch.int64, device=META), torch.zeros(batch, 77, 1024, device=META, dtype=z.dtype)

    def forward() -> Any:
        restored = unet(z, t, context).sample
        return vae.decode(restored).sample if decode else restored

    saved = saved_bytes(forward, nn.ModuleList([unet, vae]))
    return Row(size(unet) + (size(vae) if decode else 0), 3 * size(unet, only=True), saved)


def kl_vae() -> Any:
    """Stable Diffusion's VAE, frozen, its decoder recomputing activations as training has it."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**_SD_VAE).requires_grad_(False)
    vae.enable_gradient_checkpointing()
    vae.decoder.train()
    return vae


def table(batches: list[int]) -> str:
    """Markdown."""
    lines = [
        "# Memory of a training step at 512 pixels",
        "",
        "Written by `python -m benchmarks.memory`: counted on meta tensors of the real sizes (SD 2.1), so a lower bound and an",
        "*estimate* of what a GPU needs. Kernels' workspaces, fragmentation, judging networks and the recomputed block of",
        "checkpointing come on top.",
        "",
        "| stage | precision | batch | weights GiB | gradients and moments GiB | saved activations GiB | sum GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds: list[tuple[str, Callable[[int, str], Row]]] = [
        ("codebook, adapter: latent terms on stored latents", lambda b, p: codebook_or_adapter(b, p, False)),
        ("codebook, adapter: picture terms, SD decoder", lambda b, p: codebook_or_adapter(b, p, True)),
        ("prior LoRA: latent terms, checkpointing", lambda b, p: prior(b, p, False, True)),
        ("prior LoRA: latent terms, no checkpointing", lambda b, p: prior(b, p, False, False)),
        ("prior LoRA: picture terms, checkpointing", lambda b, p: prior(b, p, True, True)),
    ]
    for name, measure in kinds:
        for precision in ("no", "bf16"):
            for batch in batches:
                row = measure(batch, precision)
                cells = " | ".join(f"{value / GIB:.2f}" for value in (*row, sum(row)))
                lines.append(f"| {name} | {precision} | {batch} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, help="also write the table here (Markdown)")
    args = parser.parse_args()
    text = table(args.batches)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
