"""How much faster a UNet is with its constants folded, measured in turns, each one first in every other pair.

    python -m benchmarks.fold [--model small|sd15|sd21] [--size 64] [--batch 1] [--pairs 10] [--device cpu]

On a CPU the time is that of the processor, all threads together: other work on the machine does not count. Random weights:
the time does not depend on them. Prints the two medians, their ratio and the largest output difference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lafr_core.latent.folding import fold_constants

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
SD21: dict[str, Any] = {
    **SD15,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SMALL: dict[str, Any] = {**SD21, "block_out_channels": (64, 128, 256, 256), "attention_head_dim": (2, 4, 8, 8)}
MODELS = {"small": SMALL, "sd15": SD15, "sd21": SD21}


def seconds(job: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: processor time on a CPU; elsewhere wall time, the device's queue drained before and after."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def taking_turns(
    first: Callable[[], Any], second: Callable[[], Any], pairs: int, device: torch.device
) -> tuple[float, float, float]:
    """Median seconds of both and the median of the pairs' ratios first / second."""
    times = []
    for number in range(pairs):
        if number % 2 == 0:
            a, b = seconds(first, device), seconds(second, device)
        else:
            b, a = seconds(second, device), seconds(first, device)
        times.append((a, b))
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    parser.add_argument("--size", type=int, default=64, help="side of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    from diffusers import UNet2DConditionModel

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**MODELS[args.model]).eval().requires_grad_(False).to(device)
    context = torch.randn(1, 77, MODELS[args.model]["cross_attention_dim"], device=device)
    folded = fold_constants(unet, 399, context)
    x = torch.randn(args.batch, 4, args.size, args.size, device=device)
    tokens = context.expand(args.batch, -1, -1)
    with torch.no_grad():
        plain = lambda: unet(x, 399, tokens).sample
        difference = float((plain() - folded(x)).abs().max())
        before, after, ratio = taking_turns(plain, lambda: folded(x), args.pairs, device)
    sizes = f"{args.batch} x {args.size}x{args.size} latents"
    print(f"{args.model} UNet, {sizes}, {device}, {args.pairs} pairs, {torch.get_num_threads()} threads")
    print(f"plain  {before * 1e3:9.1f} ms")
    print(f"folded {after * 1e3:9.1f} ms")
    print(f"ratio  {ratio:9.3f} (median of the pairs)")
    print(f"largest difference {difference:.2e}")


if __name__ == "__main__":
    main()
