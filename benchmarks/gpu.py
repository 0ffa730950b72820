"""Full-size timings on a CUDA GPU; random weights, because timings need no checkpoint.

    python -m benchmarks.gpu [--out docs/gpu.md] [--batches 1 4 8] [--repeats 10]

SD 2.1's UNet and KL VAE at 512 pixels in bfloat16: seconds a face for encode, adapter, one step plain and folded, decode;
peak memory; training steps a second of each stage; and the largest difference from float32 on the CPU. Without CUDA it says
so and stops.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fold import SD21, seconds
from lafr_core.latent.folding import fold_constants
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.spec import family
from lafr_core.latent.vae import _SD_VAE, KlVae
from train.config import PriorStage
from train.engine.parts import OneStep, add_lora, decoder_of, spare_memory
from train.judges import losses
from train.tasks.codebook_learning import CodebookLearner

GPU = torch.device("cuda")


def median_seconds(job: Callable[[], Any], repeats: int) -> float:
    """Median of ``repeats`` calls after two to warm up."""
    for _ in range(2):
        job()
    return statistics.median(seconds(job, GPU) for _ in range(repeats))


def peak_gib(job: Callable[[], Any]) -> float:
    """Largest memory held while ``job`` runs, GiB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    job()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def models() -> tuple[nn.Module, KlVae, AdapterNet]:
    """SD 2.1's UNet and VAE and the default adapter, random weights, on the GPU."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(GPU):
        unet = UNet2DConditionModel(**SD21).eval().requires_grad_(False)
        vae = AutoencoderKL(**_SD_VAE).eval().requires_grad_(False)
        adapter = AdapterNet().eval().requires_grad_(False)
    return unet, KlVae(vae, family("sd")), adapter


def inference_rows(batches: list[int], repeats: int) -> list[tuple[str, ...]]:
    """One row a batch size: milliseconds a face for every stage, peak memory of the folded route."""
    unet, vae, adapter = models()
    unet.to(torch.bfloat16)
    vae.network.to(torch.bfloat16)
    context = torch.randn(1, 77, 1024, device=GPU, dtype=torch.bfloat16)
    folded = fold_constants(unet, 399, context)
    rows = []
    for batch in batches:
        pixels = torch.rand(batch, 3, 512, 512, device=GPU, dtype=torch.bfloat16)
        z = torch.randn(batch, 4, 64, 64, device=GPU)
        low = z.bfloat16()
        half = torch.full((batch, 1, 1, 1), 0.5, device=GPU)
        tokens = context.expand(batch, -1, -1)

        def whole(pixels: Tensor = pixels, half: Tensor = half) -> Tensor:
            aligned = adapter(vae.encode(pixels).float(), half).latents
            return vae.decode(folded(aligned.bfloat16()))

        with torch.no_grad():
            jobs = (
                lambda pixels=pixels: vae.encode(pixels),
                lambda z=z, half=half: adapter(z, half),
                lambda low=low, tokens=tokens: unet(low, 399, tokens).sample,
                lambda low=low: folded(low),
                lambda low=low: vae.decode(low),
                whole,
            )
            times = [f"{median_seconds(job, repeats) / batch * 1e3:.2f}" for job in jobs]
            rows.append((str(batch), *times, f"{peak_gib(whole):.2f}"))
    return rows


def training_rows(batch: int, repeats: int) -> list[tuple[str, ...]]:
    """Steps a second and peak memory of the three stages at 512 pixels, latent and pixel terms."""
    unet, vae, _ = models()
    vae.network.to(torch.bfloat16)
    spare_memory(vae)  # as the stages do
    pixels = torch.rand(batch, 3, 512, 512, device=GPU)
    decode = decoder_of(vae)
    with torch.no_grad():
        z = vae.encode(pixels.bfloat16()).float()
    rows = []

    def measure(name: str, network: nn.Module, loss: Callable[[], Tensor]) -> None:
        learning = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-5)

        def step() -> None:
            with torch.autocast("cuda", torch.bfloat16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        parameters = sum(p.numel() for p in learning) / 1e6
        rows.append((name, f"{parameters:.2f} M", f"{1 / median_seconds(step, repeats):.2f}", f"{peak_gib(step):.2f}"))

    with torch.device(GPU):
        adapter = AdapterNet()
    adapter.codebook.requires_grad_(False)
    learner = CodebookLearner(adapter.codebook, torch.Generator().manual_seed(0))
    nothing = z.new_zeros(batch, 1, 1, 1)

    def codebook_loss() -> Tensor:
        with torch.no_grad():
            vae.encode(pixels.bfloat16())
        out = adapter(z, nothing)
        learner.update(out.features.code, out.match.indices, out.match.distance)
        return losses.latent(out.latents, z) + losses.pixel(decode(out.latents.bfloat16()).float(), pixels)

    def adapter_loss() -> Tensor:
        with torch.no_grad():
            vae.encode(pixels.bfloat16()), vae.encode(pixels.bfloat16())
        out = adapter(z, nothing + 0.5)
        return losses.latent(out.latents, z) + losses.pixel(decode(out.latents.bfloat16()).float(), pixels)

    measure("codebook", adapter, codebook_loss)
    measure("adapter", adapter, adapter_loss)
    add_lora(unet.to(torch.bfloat16), PriorStage())
    unet.enable_gradient_checkpointing()  # type: ignore[operator]
    unet.train()
    prior = OneStep(unet, torch.randn(1, 77, 1024, device=GPU, dtype=torch.bfloat16), 399, "v_prediction")

    def prior_loss() -> Tensor:
        with torch.no_grad():
            vae.encode(pixels.bfloat16()), vae.encode(pixels.bfloat16())
        restored = prior(z)
        return losses.latent(restored, z) + losses.pixel(decode(restored.bfloat16()).float(), pixels)

    measure("prior (LoRA)", prior, prior_loss)
    return rows


@torch.no_grad()
def correctness() -> list[tuple[str, str, str]]:
    """Largest absolute difference between the GPU (float32 without TF32, then bfloat16) and float32 on the CPU, one face."""
    unet, vae, adapter = models()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 512, 512, generator=generator)
    z, context = torch.randn(1, 4, 64, 64, generator=generator), torch.randn(1, 77, 1024, generator=generator)
    half = torch.full((1, 1, 1, 1), 0.5)
    jobs: dict[str, Callable[[torch.device, torch.dtype], Tensor]] = {
        "encode": lambda d, t: vae.encode(x.to(d, t)),
        "adapter": lambda d, t: adapter(z.to(d, t), half.to(d, t)).latents,
        "one step, folded": lambda d, t: fold_constants(unet, 399, context.to(d, t))(z.to(d, t)),
        "decode": lambda d, t: vae.decode(z.to(d, t)),
    }
    results: dict[str, list[Tensor]] = {name: [] for name in jobs}
    for device, dtype in ((torch.device("cpu"), torch.float32), (GPU, torch.float32), (GPU, torch.bfloat16)):
        for module in (unet, vae.network, adapter):
            module.to(device, dtype)
        for name, job in jobs.items():
            results[name].append(job(device, dtype).float().cpu())
    return [(name, *(f"{float((r - cpu).abs().max()):.2e}" for r in rest)) for name, (cpu, *rest) in results.items()]  # type: ignore[misc]


def markdown(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the tables here (Markdown)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--training-batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks.gpu: expected a CUDA GPU, found none; nothing was measured. Run it on a machine that has one.",
            file=sys.stderr,
        )
        sys.exit(2)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = correctness()
    torch.cuda.empty_cache()
    name = torch.cuda.get_device_name()
    parts = [
        f"# Measured on {name}\n\ntorch {torch.__version__}, SD 2.1 UNet and KL VAE with random weights, 512 px.\n",
        markdown(
            "Inference, bfloat16: milliseconds a face",
            ("batch", "encode", "adapter (float32)", "one step, plain", "one step, folded", "decode", "whole", "peak GiB"),
            inference_rows(args.batches, args.repeats),
        ),
        markdown(
            f"Training, bfloat16, batch {args.training_batch}",
            ("stage", "trainable", "steps a second", "peak GiB"),
            training_rows(args.training_batch, args.repeats),
        ),
        markdown("Largest difference from float32 on the CPU", ("part", "GPU float32", "GPU bfloat16"), exact),
    ]
    text = "\n".join(parts)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
