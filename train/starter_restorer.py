"""Train the starter adapter and prior on stored latent pairs (train.pairs): codebook, then adapter, then prior.

    python -m train.starter_restorer codebook --pairs runs/pairs --data ../shared/data/faces --out runs/restorer
    python -m train.starter_restorer adapter  --pairs runs/pairs --data ... --out runs/restorer --minutes 60
    python -m train.starter_restorer prior    --pairs runs/pairs --data ... --out runs/restorer --identity ../shared/weights

Latent loss alone moves latents the right way while colours drift and edges soften, so windows of every sample are decoded and
held to pixels and edges, and one whole face a step to the identity network as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core import checkpoint
from lafr_core.color import match_color
from lafr_core.crop import template_crops
from lafr_core.files import atomic
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.metrics import psnr, ssim
from lafr_core.networks.adapter import AdapterNet
from lafr_core.networks.prior import PriorNet
from lafr_core.networks.vae import StarterVaeNet
from train import arguments, optimizers
from train.adversary import LatentCritic, critic_loss, restorer_losses
from train.codebook_learning import CodebookLearner
from train.degrade import degrade
from train.faces import aligned_crop, load_pixels, read_split
from train.losses import similarity, texture
from train.mobilefacenet import load_mobilefacenet
from train.pairs import Pool
from train.starter_vae import edges, pixel_loss

log = logging.getLogger("train.starter_restorer")
FACTOR = 8
WARM_UP = 50
"""Steps in which the learning rate rises."""
WINDOW = 22
"""Latent cells along the side of the random window that is decoded of most samples."""
FACE = slice(7, 57)
"""Cells along either side that hold the ArcFace crop of an FFHQ-aligned face: decoded of the first sample of every step."""


def amp() -> torch.autocast:
    """bfloat16 where it matters: 2.3 times as fast on a processor with avx512_bf16, accurate enough to train with."""
    return torch.autocast("cpu", torch.bfloat16)


def average(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """Move ``slow`` towards ``fast`` in place: parameters averaged, buffers copied."""
    with torch.no_grad():
        for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
            a.lerp_(b, 1 - decay)
        for a, b in zip(slow.buffers(), fast.buffers(), strict=True):
            a.copy_(b)


def load_vae(path: Path) -> StarterVaeNet:
    return checkpoint.open_network(path, "vae", StarterVaeNet).to(memory_format=torch.channels_last)


def load_adapter(path: Path) -> AdapterNet:
    """An adapter that may be trained on: its codebook stays as it is."""
    network = checkpoint.open_network(path, "adapter", AdapterNet).train().requires_grad_(True)
    network.codebook.codes.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def load_prior(path: Path | None) -> PriorNet:
    if path is None:
        return PriorNet().to(memory_format=torch.channels_last)
    network = checkpoint.open_network(path, "prior", PriorNet).train().requires_grad_(True)
    return network.to(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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
        z = _channels_last(latents[rows])
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
                    z_lq, z_hq = self.vae.encoder(_channels_last(torch.cat([low, sharp]))).float().chunk(2)
                    z_al = adapter(z_lq, w).latents.float()
                    z = prior(z_al).float() if prior is not None else z_al
                    trip, result, own = (
                        self.vae.decoder(_channels_last(torch.cat([z_lq, z, z_hq]))).float().clamp(0, 1).chunk(3)
                    )
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


class Windows:
    """A batch: latents of whole crops, and which part of each is decoded and compared with sharp pixels."""

    def __init__(self, pool: Pool, generator: torch.Generator, batch: int, face: bool) -> None:
        samples = pool.draw(generator, batch)
        self.z_lq = _channels_last(torch.stack([s[0] for s in samples]))
        self.z_hq = _channels_last(torch.stack([s[1] for s in samples]))
        self.cells: list[tuple[slice, slice]] = []
        corners = torch.randint(0, 64 - WINDOW + 1, (batch, 2), generator=generator).tolist()
        for number, (top, left) in enumerate(corners):
            whole = face and number == 0
            self.cells.append((FACE, FACE) if whole else (slice(top, top + WINDOW), slice(left, left + WINDOW)))
        grow = lambda s: slice(s.start * FACTOR, s.stop * FACTOR)
        self.sharp = [s[2](grow(ys), grow(xs)) for s, (ys, xs) in zip(samples, self.cells, strict=True)]
        self.face = face

    def decode(self, decoder: nn.Module, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(decoded, sharp) pixels in two groups of equal size: the face first, when there is one."""
        parts = [latents[i : i + 1, :, ys, xs] for i, (ys, xs) in enumerate(self.cells)]
        groups = [slice(0, 1), slice(1, None)] if self.face else [slice(None)]
        out = []
        for group in groups:
            if parts[group]:
                decoded = decoder(_channels_last(torch.cat(parts[group]))).float()
                out.append((decoded, torch.stack(self.sharp[group])))
        return out


def picture_losses(pairs: list[tuple[Tensor, Tensor]], teacher: nn.Module | None) -> dict[str, Tensor]:
    """Terms on decoded pixels, each the mean over samples whatever the size of their windows."""
    count = sum(len(result) for result, _ in pairs)
    mean = lambda term: sum(term(result, sharp) * (len(result) / count) for result, sharp in pairs)
    decibel = lambda a, b: (a - b).square().mean((1, 2, 3)).clamp_min(1e-5).log().mean()
    terms = {"pixel": mean(pixel_loss), "decibel": mean(decibel), "ssim": mean(lambda a, b: 1 - similarity(a, b))}
    if teacher is not None:
        terms["identity"], terms["features"] = identity_losses(teacher, *pairs[0])
    return terms  # type: ignore[return-value]


WEIGHTS = {"align": 0.7, "latent": 0.7, "anchor": 0.05, "pixel": 2.0, "decibel": 0.2, "ssim": 0.5, "features": 0.1}


def weighted(losses: dict[str, Tensor], args: argparse.Namespace) -> Tensor:
    """The sum that is minimised."""
    weights = WEIGHTS | {"identity": args.identity_weight}
    return torch.stack([weights[name] * value for name, value in losses.items() if name in weights]).sum()


def train_nets(args: argparse.Namespace) -> None:
    """``adapter``: the adapter alone. ``prior``: the prior behind it, the adapter learning on only with --both."""
    vae = load_vae(args.vae)
    validation = Validation(args.data, vae, every=args.val_every)
    torch.manual_seed(args.seed)
    codebook = load_adapter(args.out / "codebook.safetensors")
    anchors = codebook.extractor.requires_grad_(False)  # F of the codebook stage tells the right entries
    adapter = load_adapter(args.init or args.out / "codebook.safetensors")
    prior = load_prior(args.init_prior) if args.stage == "prior" else None
    teacher = load_mobilefacenet(args.identity).to(memory_format=torch.channels_last) if prior is not None else None
    if prior is not None and not args.both:
        adapter.requires_grad_(False)
    nets = nn.ModuleDict({"adapter": adapter} if prior is None else {"adapter": adapter, "prior": prior})
    slow = copy.deepcopy(nets).requires_grad_(False)
    optimizer = optimizers.make("muon", nets, args.lr, weight_decay=1e-3)
    # A critic from the start of a prior run: what it asks for grows with it.
    critic = LatentCritic() if prior is not None and args.adversarial > 0 else None
    critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=4e-4, betas=(0.0, 0.99)) if critic is not None else None
    first = 0
    state_file = args.out / f"{args.stage}_state.pt"
    if args.resume and state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        nets.load_state_dict(state["nets"]), slow.load_state_dict(state["slow"]), optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log.info("resumed at step %d", first)
    pool, generator = Pool(args.pairs), torch.Generator()
    started, totals = time.time(), dict[str, float]()
    step = first
    while True:
        done = args.done + (1 - args.done) * (time.time() - started) / (60 * args.minutes)
        for group in optimizer.param_groups:
            group["lr"] = optimizers.warm_cosine(step - first, done, args.lr, WARM_UP)
        generator.manual_seed(args.seed * 1_000_003 + step)
        if step % 100 == 0:
            pool.refresh()
        batch = Windows(pool, generator, args.batch, face=prior is not None)
        # Half of the samples at the default fidelity, half anywhere: every setting of the knob has to work.
        u = torch.rand((2, args.batch, 1, 1, 1), generator=generator)
        fidelity = torch.where(u[0] < args.share, torch.full_like(u[1], args.fidelity), u[1])
        with amp():
            with torch.set_grad_enabled(prior is None or args.both):
                aligned = adapter(batch.z_lq, fidelity)
            # The adapter has to stand alone, before any other prior, so this one's errors do not reach it.
            z = aligned.latents if prior is None else prior(aligned.latents.detach())
            leaf = z.detach().float().requires_grad_()  # what is asked of the latents meets here
            pictures = batch.decode(vae.decoder, leaf)
        losses = picture_losses(pictures, teacher)
        losses["latent"] = relative(leaf, batch.z_hq, batch.z_lq)
        ramp = min(1.0, 4 * done)
        extra = []  # further pulls, each measured against everything else's, so that neither drowns the other
        if args.texture > 0:
            count = sum(len(result) for result, _ in pictures)
            losses["texture"] = torch.stack([texture(a, b) * (len(a) / count) for a, b in pictures]).sum()
            extra.append((args.texture, torch.autograd.grad(losses["texture"], leaf, retain_graph=True)[0]))
        wanted = torch.autograd.grad(weighted(losses, args), leaf)[0]
        if critic is not None:
            with amp():
                losses["adversary"], losses["matching"] = restorer_losses(critic, leaf, batch.z_hq)
            extra.append((args.adversarial, torch.autograd.grad(losses["adversary"] + 2 * losses["matching"], leaf)[0]))
        size = wanted.norm()
        for share, pull in extra:
            wanted = wanted + pull * (ramp * share * size / pull.norm().clamp_min(1e-12))
        roots, gradients = [z], [wanted.to(z.dtype)]
        if prior is not None and args.both:
            losses["align"] = relative(aligned.latents.float(), batch.z_hq, batch.z_lq)
        if aligned.latents.requires_grad:
            with torch.no_grad(), amp():
                target = codebook.codebook(anchors(batch.z_hq).code)
            losses["anchor"] = F.mse_loss(aligned.features.code.float(), target.quantised.float())
            roots.append(weighted({name: losses[name] for name in ("align", "anchor") if name in losses}, args))
            gradients.append(torch.ones_like(roots[1]))
        bad = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
        if bad:
            raise SystemExit(f"step {step}: loss term {bad} is not finite; the last checkpoint in {args.out} is good")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(roots, gradients)
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        if critic is not None and critic_optimizer is not None:
            critic_optimizer.zero_grad(set_to_none=True)
            losses["critic"] = critic_loss(critic, leaf, batch.z_hq)
            losses["critic"].backward()
            critic_optimizer.step()
        average(slow, nets, min(args.ema, (step + 1 - first) / (step + 10 - first)))
        step += 1
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item()
        if step % 50 == 0:
            text = " ".join(f"{name} {value / 50:.4f}" for name, value in totals.items())
            log.info(
                "step %d shards %d %s  %.2f s/step", step, len(pool.shards), text, (time.time() - started) / (step - first)
            )
            totals = {}
        last = done >= 1
        if step % args.save_every == 0 or last:
            scores = validation(slow["adapter"], slow["prior"] if prior is not None else None, args.fidelity)
            log.info("validation %d %s", step, json.dumps(scores))
            settings = json.dumps({k: str(v) for k, v in vars(args).items()})
            notes = {"licence": "MIT", "step": str(step), "training": settings, "validation": json.dumps(scores)}
            for kind, net in slow.items():
                checkpoint.save(args.out / f"{kind}.safetensors", kind, net, net.config, notes)
            state = {"nets": nets.state_dict(), "slow": slow.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            with atomic(state_file) as part:
                torch.save(state, part)
        if last:
            break


def identity_losses(teacher: nn.Module, result: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The FACE window of crops (1, 3, 400, 400) -> 1 - cosine of the teacher's embeddings, relative L1 of its feature maps."""
    border = (FACE.start * FACTOR, 512 - FACE.stop * FACTOR) * 2
    faces = template_crops(F.pad(torch.cat([result, target]), border, mode="replicate"), ARCFACE_TEMPLATE, 112)
    with amp():
        embedding, maps = teacher.with_features(faces)  # type: ignore[operator]
    ours, theirs = F.normalize(embedding.float(), dim=1).chunk(2)
    features = torch.zeros(())
    for feature in maps:
        a, b = feature.float().chunk(2)
        features = features + F.l1_loss(a, b.detach()) / b.detach().abs().mean().clamp_min(1e-6) / len(maps)
    return (1 - (ours * theirs.detach()).sum(1)).mean(), features


def relative(latents: Tensor, target: Tensor, before: Tensor) -> Tensor:
    """Mean over samples of the L1 to ``target`` as a share of what it was ``before``: mild and severe samples count alike."""
    distance, start = ((z - target).abs().mean((1, 2, 3)) for z in (latents, before))
    return (distance / start.clamp_min(0.05)).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("codebook", "adapter", "prior"))
    parser.add_argument("--pairs", type=Path, required=True, help="folder of shards by train.pairs")
    parser.add_argument("--data", type=Path, required=True, help="folder with faces.csv, for validation")
    parser.add_argument("--vae", type=Path, default=Path("lafr_core/weights/vae.safetensors"))
    parser.add_argument("--identity", type=Path, help="prior stage: folder with mobilefacenet_foamliu.pt")
    parser.add_argument("--out", type=Path, default=Path("runs/restorer"))
    parser.add_argument("--init", type=Path, help="start from this adapter instead of the codebook stage's")
    parser.add_argument("--init-prior", type=Path, help="prior stage: start from this prior instead of an untrained one")
    parser.add_argument("--both", action="store_true", help="prior stage: the adapter learns on")
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
    parser.add_argument("--identity-weight", type=float, default=0.15)
    parser.add_argument(
        "--adversarial", type=float, default=0.0, help="prior stage: the latent critic's pull as a share of the rest"
    )
    parser.add_argument("--texture", type=float, default=0.0, help="the pull of the texture term, as a share of the rest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = arguments.parse(parser)
    args.out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    log.info("%s", vars(args))
    stages: dict[str, Callable[[argparse.Namespace], None]] = {"codebook": train_codebook}
    stages.get(args.stage, train_nets)(args)


if __name__ == "__main__":
    main()
