"""Train the starter adapter and prior on stored latent pairs (train.data.pairs): codebook, then adapter, then prior.

    python -m train restorer codebook --pairs runs/pairs --data ../shared/data/faces --out runs/restorer
    python -m train restorer adapter  --pairs runs/pairs --data ... --out runs/restorer --teachers ../shared/weights
    python -m train restorer prior    --pairs runs/pairs --data ... --out runs/restorer --teachers ../shared/weights

Latent loss alone moves latents the right way while colours drift and edges soften, so windows of every sample are decoded and
held to pixels and edges (train.data.windows), and thumbnails of every sample to the identity network (:mod:`.thumbnail`). The
prior learns behind the finished adapter and gives back the edge energy that regression loses.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.faces.color import match_color
from lafr_core.images.degrade import degrade
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from lafr_core.store.atomic import atomic
from train.data.pairs import Pool
from train.data.photos import aligned_crop, load_pixels, read_split
from train.data.windows import average, load_vae
from train.engine import optimizers
from train.precision import amp, channels_last
from train.tasks.codebook_learning import CodebookLearner
from train.tasks.starter_stages import StarterAdapter, StarterPrior
from train.tasks.vae import edges
from train.tools import arguments

log = logging.getLogger("train.starter_restorer")
WARM_UP = 50
"""Steps in which the learning rate rises."""


def train_codebook(args: argparse.Namespace) -> None:
    """F, C and M reconstruct sharp latents through the codebook alone (fidelity 0)."""
    latents = torch.cat([z_hq for z_hq, _ in Pool(args.pairs).latents.values()]).float()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    network = AdapterNet().to(memory_format=torch.channels_last)
    network.codebook.codes.requires_grad_(False)
    learner = CodebookLearner(network.codebook, generator)
    optimizer = optimizers.make("adamw", network, args.lr, weight_decay=1e-4)
    zero = torch.zeros(args.batch, 1, 1, 1)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = optimizers.warm_cosine(step, step / args.steps, args.lr, WARM_UP)
        rows = torch.randint(len(latents), (args.batch,), generator=generator)
        z = channels_last(latents[rows])
        with amp():
            features = network.extractor(z)
            if step < args.warm:  # without quantisation first, so that k-means starts from meaningful features
                entries, match = features.code, None
            else:
                if step == args.warm:
                    learner.start(features.code)
                match = network.codebook(features.code)
                entries = features.code + (match.quantised - features.code).detach()
            mapped = network.mapping(entries, features, zero)[0].float()
        loss = F.l1_loss(mapped, z)
        commit = torch.zeros(()) if match is None else F.mse_loss(features.code.float(), match.quantised.float().detach())
        optimizer.zero_grad(set_to_none=True)
        (loss + 0.25 * commit).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        usage = learner.update(features.code, match.indices, match.distance) if match is not None else None
        if (step + 1) % 25 == 0:
            log.info("codebook %d l1 %.4f commit %.4f %s", step + 1, loss.item(), commit.item(), usage)
    checkpoint.save(args.out / "codebook.safetensors", "adapter", network, network.config, {"stage": "codebook"})


class Validation:
    """Fixed degraded crops of some validation faces with their sharp latents; scores the two nets as a user would run them."""

    SEVERITIES = ("mild", "medium", "severe")

    def __init__(self, data: Path, vae: StarterVaeNet, every: int) -> None:
        photos = read_split(data, "val")[::every]
        self.vae = vae
        self.cases: dict[str, list[tuple[Tensor, Tensor]]] = {severity: [] for severity in self.SEVERITIES}
        for number, photo in enumerate(photos):
            sharp = aligned_crop(load_pixels(photo), photo.matrix)
            for severity in self.SEVERITIES:
                low, _ = degrade(sharp.permute(1, 2, 0).numpy(), np.random.default_rng([number, 77]), severity)
                self.cases[severity].append((torch.from_numpy(low).permute(2, 0, 1)[None], sharp[None]))

    @torch.no_grad()
    def __call__(self, adapter: AdapterNet, prior: PriorNet | None, fidelity: float) -> dict[str, float]:
        """By severity: latent ratios, PSNR and SSIM gains over the round trip of the input, edge energy by the original's."""
        scores: dict[str, float] = {}
        w = torch.full((1, 1, 1, 1), fidelity)
        for severity, cases in self.cases.items():
            rows = []
            for low, sharp in cases:
                with amp():
                    z_lq, z_hq = self.vae.encoder(channels_last(torch.cat([low, sharp]))).float().chunk(2)
                    z_al = adapter(z_lq, w).latents.float()
                    z = prior(z_al).float() if prior is not None else z_al
                    trip, result, own = self.vae.decoder(channels_last(torch.cat([z_lq, z, z_hq]))).float().clamp(0, 1).chunk(3)
                result = match_color(result, low, 1.0)
                rows.append(
                    [
                        F.l1_loss(z_al, z_hq).item() / F.l1_loss(z_lq, z_hq).item(),
                        F.l1_loss(z, z_hq).item() / F.l1_loss(z_lq, z_hq).item(),
                        float(psnr(result, sharp) - psnr(trip, sharp)),
                        float(ssim(result, sharp) - ssim(trip, sharp)),
                        float(edges(result).square().mean() / edges(own).square().mean()),
                    ]
                )
            names = ("ratio_al", "ratio", "psnr", "ssim", "sharpness")
            scores |= {f"{severity}_{name}": round(float(v), 4) for name, v in zip(names, np.mean(rows, axis=0), strict=True)}
        return scores


def train_nets(args: argparse.Namespace) -> None:
    """Stages ``adapter`` and ``prior``: one step loop, ended by the clock."""
    vae = load_vae(args.vae)
    validation = Validation(args.data, vae, every=args.val_every)
    torch.manual_seed(args.seed)
    stage = (StarterAdapter if args.stage == "adapter" else StarterPrior)(args, vae)
    slow = copy.deepcopy(stage.net).requires_grad_(False)
    optimizer = optimizers.make("muon", stage.net, args.lr, weight_decay=1e-3)
    first = 0
    state_file = args.out / f"{args.stage}_state.pt"
    if args.resume and state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        stage.net.load_state_dict(state["net"]), slow.load_state_dict(state["slow"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log.info("resumed at step %d", first)
    pool, generator = Pool(args.pairs, args.tiny), torch.Generator()
    started, totals = time.time(), dict[str, float]()
    step = first
    while True:
        done = args.done + (1 - args.done) * (time.time() - started) / (60 * args.minutes)
        for group in optimizer.param_groups:
            group["lr"] = optimizers.warm_cosine(step - first, done, args.lr, WARM_UP)
        generator.manual_seed(args.seed * 1_000_003 + step)
        if step % 100 == 0:
            pool.refresh()
        pulls = stage.pulls(pool, generator)
        bad = [name for name, value in pulls.losses.items() if not bool(torch.isfinite(value))]
        if bad:
            raise SystemExit(f"step {step}: loss term {bad} is not finite; the last checkpoint in {args.out} is good")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(pulls.roots, pulls.gradients)
        nn.utils.clip_grad_norm_(stage.net.parameters(), 1.0)
        optimizer.step()
        average(slow, stage.net, min(args.ema, (step + 1 - first) / (step + 10 - first)))
        step += 1
        for name, value in pulls.losses.items():
            totals[name] = totals.get(name, 0.0) + value.item()
        if step % 50 == 0:
            text = " ".join(f"{name} {value / 50:.4f}" for name, value in totals.items())
            pace = (time.time() - started) / (step - first)
            log.info("step %d shards %d %s  %.2f s/step", step, len(pool.latents), text, pace)
            totals = {}
        last = done >= 1
        if step % args.save_every == 0 or last:
            scores = validation(*stage.restorer(slow), args.fidelity)
            log.info("validation %d %s", step, json.dumps(scores))
            settings = json.dumps({k: str(v) for k, v in vars(args).items()})
            notes = {"licence": "MIT", "step": str(step), "training": settings, "validation": json.dumps(scores)}
            checkpoint.save(args.out / f"{args.stage}.safetensors", args.stage, slow, stage.net.config, notes)  # type: ignore[arg-type]
            state = {
                "net": stage.net.state_dict(),
                "slow": slow.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            with atomic(state_file) as part:
                torch.save(state, part)
        if last:
            break


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("codebook", "adapter", "prior"))
    parser.add_argument("--pairs", type=Path, required=True, help="folder of shards by train.data.pairs")
    parser.add_argument("--data", type=Path, required=True, help="folder with faces.csv, for validation")
    parser.add_argument("--vae", type=Path, default=Path("lafr_core/weights/vae.safetensors"))
    parser.add_argument("--teachers", type=Path, help="folder with mobilefacenet_foamliu.pt and TAESD's two files")
    parser.add_argument("--out", type=Path, default=Path("runs/restorer"))
    parser.add_argument("--init", type=Path, help="start from this adapter instead of the codebook stage's")
    parser.add_argument("--init-prior", type=Path, help="prior stage: start from this prior instead of an untrained one")
    parser.add_argument("--depth", type=int, default=2, help="residual blocks a stage; more than --init has: it grows")
    parser.add_argument("--deep-depth", type=int, default=1, help="adapter: attention layers on its coarsest grid")
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 128, 192], help="a new prior's channels")
    parser.add_argument("--tiny", type=float, default=0.0, help="share of samples with TAESD's latents, decoded by TAESD")
    parser.add_argument("--steps", type=int, default=1000, help="codebook stage")
    parser.add_argument("--warm", type=int, default=150, help="codebook stage: steps before k-means")
    parser.add_argument("--minutes", type=float, default=60.0, help="the learning rate falls to its end over this time")
    parser.add_argument("--done", type=float, default=0.0, help="with --resume: share of the schedule already run")
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--val-every", type=int, default=8)
    parser.add_argument("--fidelity", type=float, default=0.75, help="what ``share`` of the samples are trained at")
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--identity-weight", type=float, default=0.0)
    parser.add_argument("--features-weight", type=float, default=0.0)
    parser.add_argument("--sharpness", type=float, default=0.1, help="prior: weight of the edge energy that regression loses")
    parser.add_argument("--windows", type=int, default=2, help="prior: windows of every sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = arguments.parse(parser, given)
    args.out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    log.info("%s", vars(args))
    stages: dict[str, Callable[[argparse.Namespace], None]] = {"codebook": train_codebook}
    stages.get(args.stage, train_nets)(args)
