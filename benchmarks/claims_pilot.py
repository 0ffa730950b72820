"""The paper's claims as an experiment on real FFHQ faces at 256 pixels, with small networks and a small budget.

    python -m benchmarks.claims_pilot --data ../shared/data/ffhq256_research --portraits ../shared/data/faces \\
        --vae lafr_core/weights/vae.safetensors --identity ../shared/weights --cache /tmp/claims --out docs

The prior stands in for Stable Diffusion: it is trained once to take noise off the latents of clean portraits (none from
FFHQ), then frozen, and every variant gets the same LoRA on it. Every variant sees the same split, seeds, degradations,
batch, optimiser and, unless its name says otherwise, steps. Times are CPU seconds of one thread (``process_time``), so other
work on the machine does not count. 95 % intervals are paired bootstraps over the validation faces. Each variant is kept in
the cache as it finishes; a second run goes on where the first was stopped. Weights trained here are never shipped (FFHQ is
non-commercial).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims_data import encode, faces_of, floats, portrait_latents
from benchmarks.claims_measure import DlibIdentity, Stopwatch, peak_bytes
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.vae import _SD_VAE, StarterVae, open_vae
from train.engine import optimizers
from train.judges import losses
from train.judges.losses import TemplateEmbedder
from train.judges.mobilefacenet import load_mobilefacenet
from train.precision import amp
from train.tasks.codebook_learning import CodebookLearner

log = logging.getLogger("benchmarks.claims")
METRICS = ("psnr", "ssim", "identity")
ADAPTER: dict[str, Any] = {"width": 32, "coarse": 64, "deep": 96, "code_width": 32, "entries": 256, "depth": 1, "grid": 32}
PRIOR: dict[str, Any] = {"widths": (32, 64, 96), "depth": 2, "grid": 32}
RANK = 4
NOISE = (0.1, 0.8)
"""Standard deviation of the noise that the prior learns to take off clean latents."""
FIDELITY = 0.75
"""The pack's default; half of the adapter's samples are trained at it, half anywhere."""
FIDELITIES = (0.0, 0.5, 1.0)
"""Measured beside the default."""

Curve = list[tuple[float, float]]
"""(CPU seconds, alignment error)."""


@dataclass(frozen=True)
class Budget:
    """What every variant gets."""

    pretraining: int = 300
    codebook: int = 100
    adapter: int = 180
    encoder: int = 110
    prior: int = 100
    batch: int = 8
    decoded: int = 1
    """Rows of each batch that go through the decoder for the picture terms."""
    lr: float = 2e-3
    encoder_lr: float = 1e-3
    """Fine-tuning a trained network wants smaller steps than training a new one."""
    versions: int = 1
    """Degraded versions of each training picture; drawn once, so that latents can be stored."""
    validation: int = 64
    portraits: int = 315
    seed: int = 0


@dataclass(frozen=True)
class AdapterSetup:
    """One variant of the codebook and adapter stages."""

    name: str
    share: float = 1.0
    """Share of the training faces that this adapter, and the LoRA behind it, may see."""
    top_k: int = 1
    pictures: bool = True
    """Whether decoded pixels count in its loss."""
    start: str | None = None
    """The adapter it goes on from, with the adapter stage once more, instead of a new codebook."""


@dataclass(frozen=True)
class Setup:
    """One variant of the prior stage."""

    name: str
    adapter: str | None = "base"
    latent: float = 1.0
    pixel: float = 1.0
    identity: float = 0.2
    equal_time: bool = False
    """Train for as many CPU seconds as the base variant's three stages took together."""
    whole: bool = False
    """All of the prior's weights learn instead of a LoRA."""


ADAPTERS = {
    setup.name: setup
    for setup in (
        AdapterSetup("base"),
        AdapterSetup("latent_only", pictures=False),
        AdapterSetup("third", share=1 / 3),
        AdapterSetup("ninth", share=1 / 9),
        AdapterSetup("topk", top_k=4),
        AdapterSetup("long", start="base"),
    )
}
SETUPS = (
    Setup("base"),
    Setup("no_adapter", adapter=None),
    Setup("no_adapter_longer", adapter=None, equal_time=True),
    Setup("third", adapter="third"),
    Setup("ninth", adapter="ninth"),
    Setup("no_latent", latent=0.0),
    Setup("no_pixel", pixel=0.0),
    Setup("no_identity", identity=0.0),
    Setup("topk", adapter="topk"),
    Setup("long", adapter="long"),
    Setup("no_adapter_whole", adapter=None, whole=True, equal_time=True),
)


class Bench:
    """The experiment: data, networks and what was measured so far."""

    def __init__(self, data: Path, portraits: Path, vae: StarterVae, embed: nn.Module, cache: Path, budget: Budget) -> None:
        self.vae, self.embed, self.cache, self.budget = vae, embed, cache, budget
        cache.mkdir(parents=True, exist_ok=True)
        self.train = faces_of(data / "train", budget.versions, None, vae, budget.seed, cache / "train.pt")
        self.val = faces_of(data / "val", 1, budget.validation, vae, budget.seed + 1, cache / "val.pt")
        self.portraits = portrait_latents(portraits, budget.portraits, vae, cache / "portraits.pt")
        self.originals = floats(self.val.hq)
        self.judge = DlibIdentity(self.originals)

    def rows(self, step: int, stage: int, share: float) -> tuple[Tensor, Tensor]:
        """The picture numbers of a training step and their degraded latents: the same for every variant.

        A share means the first of the list; FFHQ's numbering follows no order of content.
        """
        generator = np.random.default_rng([self.budget.seed, stage, step])
        count = max(1, round(share * len(self.train)))
        rows = torch.from_numpy(generator.integers(0, count, self.budget.batch))
        return rows, self.train.z_lq[int(generator.integers(self.budget.versions))][rows]

    def optimise(
        self, network: nn.Module, steps: int, loss: Callable[[int], Tensor], watch: Stopwatch, peak: float | None = None
    ) -> float:
        """Muon with warm-up and a cosine over whatever of the network learns; returns the watch's CPU seconds."""
        peak = self.budget.lr if peak is None else peak
        optimizer = optimizers.make("muon", network, peak, 1e-4)
        learning = [p for p in network.parameters() if p.requires_grad]
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = optimizers.warm_cosine(step, step / steps, peak, 20)
            optimizer.zero_grad(set_to_none=True)
            loss(step).backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
        return watch.seconds()

    def picture_loss(self, z: Tensor, rows: Tensor, pixel: float, identity: float) -> Tensor:
        """Pixel and identity terms of the first ``decoded`` rows."""
        if pixel == 0 and identity == 0:
            return z.new_zeros(())
        few = self.budget.decoded
        with amp():
            pictures = self.vae.network.decoder(z[:few]).float()
        target, total = floats(self.train.hq[rows[:few]]), z.new_zeros(())
        if pixel > 0:
            total = total + pixel * (losses.pixel(pictures, target) + losses.gradient(pictures, target))
        if identity > 0:
            total = total + identity * losses.identity(pictures, target, self.embed)
        return total

    def pretrained(self) -> PriorNet:
        """The prior that knows clean faces: it takes Gaussian noise of unknown strength off their latents."""
        file = self.cache / "pretrained.pt"
        torch.manual_seed(self.budget.seed)
        network = PriorNet(**PRIOR).to(memory_format=torch.channels_last)
        if file.is_file():
            network.load_state_dict(torch.load(file, weights_only=True))
            return network.eval().requires_grad_(False)

        def loss(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(step)
            z = self.portraits[torch.randint(len(self.portraits), (self.budget.batch,), generator=generator)]
            strength = torch.empty(len(z), 1, 1, 1).uniform_(*NOISE, generator=generator)
            with amp():
                restored = network(z + strength * torch.randn(z.shape, generator=generator))
            return losses.latent(restored.float(), z)

        seconds = self.optimise(network, self.budget.pretraining, loss, Stopwatch())
        log.info("pretrained prior: %.0f s", seconds)
        torch.save(network.state_dict(), file)
        return network.eval().requires_grad_(False)

    def codebook(self, setup: AdapterSetup, watch: Stopwatch) -> AdapterNet:
        """Stage 1 on clean latents."""
        torch.manual_seed(self.budget.seed)
        network = AdapterNet(**ADAPTER, top_k=setup.top_k).to(memory_format=torch.channels_last)
        network.codebook.requires_grad_(False)
        learner = CodebookLearner(network.codebook, torch.Generator().manual_seed(0))
        restart = (0, self.budget.codebook // 3)

        def loss(step: int) -> Tensor:
            z = self.train.z_hq[self.rows(step, 1, setup.share)[0]]
            with amp():
                if step in restart:
                    with torch.no_grad():
                        learner.start(network.extractor(self.train.z_hq[:64]).code)
                out = network(z, z.new_zeros(len(z), 1, 1, 1))
            code = out.features.code.float()
            learner.update(code, out.match.indices, out.match.distance)
            return losses.latent(out.latents.float(), z) + 0.25 * losses.commitment(code, out.match.quantised.float())

        self.optimise(network, self.budget.codebook, loss, watch)
        return network

    def adapter(self, name: str) -> AdapterNet:
        """Stages 1 and 2; from the cache when they are there, frozen."""
        setup, file = ADAPTERS[name], self.cache / f"adapter_{name}.pt"
        network = AdapterNet(**ADAPTER, top_k=setup.top_k).to(memory_format=torch.channels_last)
        if not file.is_file():
            learnt, curve = self.train_adapter(setup)
            (self.cache / f"adapter_{name}.json").write_text(json.dumps({"curve": curve}))
            torch.save(learnt.state_dict(), file)
            log.info("adapter %s: %.0f s, alignment error %.4f", name, *curve[-1])
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval().requires_grad_(False)

    def train_adapter(self, setup: AdapterSetup) -> tuple[AdapterNet, Curve]:
        """The seconds of the curve start with the codebook stage."""
        watch = Stopwatch()
        teacher = self.codebook(setup, watch) if setup.start is None else self.adapter(setup.start)
        network, book = copy.deepcopy(teacher).requires_grad_(True), teacher.codebook
        network.codebook.requires_grad_(False)
        first = 0 if setup.start is None else self.budget.adapter  # going on means new draws
        curve: Curve = []

        def error() -> None:
            with watch.paused(), torch.no_grad(), amp():
                aligned = torch.cat([self.align(network, part, FIDELITY) for part in self.val.z_lq[0].split(8)])
                curve.append((watch.seconds(), self.alignment_error(aligned)))

        def loss(step: int) -> Tensor:
            rows, z_lq = self.rows(first + step, 2, setup.share)
            z_hq = self.train.z_hq[rows]
            draw = np.random.default_rng([3, first + step]).random((2, len(rows), 1, 1, 1), dtype=np.float32)
            fidelity = torch.from_numpy(np.where(draw[0] < 0.5, np.float32(FIDELITY), draw[1]))
            if step % 20 == 0:
                error()
            with amp():
                with torch.no_grad():
                    anchors = book(teacher.extractor(z_hq).code)
                out = network(z_lq, fidelity)
            code, z = out.features.code.float(), out.latents.float()
            value = losses.latent(z, z_hq) + 0.25 * losses.commitment(code, anchors.quantised.float())
            value = value + 0.05 * losses.code(code, book.codes.weight, book.spread, anchors.indices)
            return value + (self.picture_loss(z, rows, Setup.pixel, Setup.identity) if setup.pictures else 0)

        self.optimise(network, self.budget.adapter, loss, watch)
        error()
        return network, curve

    def alignment_error(self, aligned: Tensor) -> float:
        """Mean L1 between aligned and clean latents of the validation faces."""
        return float((aligned.float() - self.val.z_hq).abs().mean())

    def encoder(self) -> None:
        """The alternative to an adapter: fine-tune the encoder itself on the same pairs, latent term only. Its curve goes to
        ``encoder.json``.
        """
        file = self.cache / "encoder.json"
        if file.is_file():
            return
        encoder = copy.deepcopy(self.vae.network.encoder).train().requires_grad_(True)
        curve: Curve = []
        watch = Stopwatch()

        def error() -> None:
            with watch.paused(), torch.no_grad(), amp():
                z = torch.cat([encoder(floats(part)) for part in self.val.lq[0].split(8)])
                curve.append((watch.seconds(), self.alignment_error(z)))

        def loss(step: int) -> Tensor:
            generator = np.random.default_rng([self.budget.seed, 2, step])  # the draws of rows(), for pictures
            rows = torch.from_numpy(generator.integers(0, len(self.train), self.budget.batch))
            pictures = floats(self.train.lq[int(generator.integers(self.budget.versions))][rows])
            if step % 10 == 0:
                error()
            with amp():
                z = encoder(pictures)
            return losses.latent(z.float(), self.train.z_hq[rows])

        self.optimise(encoder, self.budget.encoder, loss, watch, self.budget.encoder_lr)
        error()
        file.write_text(json.dumps({"curve": curve}))
        log.info("encoder: %.0f s, alignment error %.4f", *curve[-1])

    def costs(self) -> None:
        """CPU seconds and peak bytes of a forward and backward pass of two faces through the adapter, this VAE's encoder, the
        pack's adapter and Stable Diffusion's encoder (real sizes, random weights); seconds of encoding a batch: ``costs.json``.
        """
        from diffusers import AutoencoderKL

        file = self.cache / "costs.json"
        if file.is_file():
            return
        pictures, z = self.train.lq[0][:2], self.train.z_lq[0][:2]
        adapter = AdapterNet(**ADAPTER).to(memory_format=torch.channels_last)
        encoder = copy.deepcopy(self.vae.network.encoder).train().requires_grad_(True)
        default = AdapterNet().to(memory_format=torch.channels_last)
        sd_encoder = AutoencoderKL(**_SD_VAE).encoder.to(memory_format=torch.channels_last)
        passes: dict[str, Callable[[], Tensor]] = {
            "adapter": lambda: self.align(adapter, z, FIDELITY),
            "encoder": lambda: encoder(floats(pictures)),
            "default": lambda: self.align(default, z, FIDELITY),
            "sd_encoder": lambda: sd_encoder(floats(pictures)),
        }
        costs: dict[str, float] = {}
        for name, forward in passes.items():

            def step(forward: Callable[[], Tensor] = forward) -> None:
                with amp():
                    out = forward()
                out.float().abs().mean().backward()

            costs[f"{name}_bytes"] = peak_bytes(step)  # the first pass allocates the gradients
            watch = Stopwatch()
            step()
            costs[f"{name}_seconds"] = watch.seconds()
        watch = Stopwatch()
        encode(self.vae, self.train.lq[0][: self.budget.batch])
        costs["encoding_seconds"] = watch.seconds()
        file.write_text(json.dumps(costs))

    def prior(self, setup: Setup) -> dict[str, list[float]]:
        """Stage 3: adapt the prior as ``setup`` says and measure it; cached by name."""
        file = self.cache / f"prior_{setup.name}.json"
        if file.is_file():
            return dict(json.loads(file.read_text()))
        adapter = self.adapter(setup.adapter) if setup.adapter else None
        share = ADAPTERS[setup.adapter].share if setup.adapter else 1.0
        network = self.lora(setup.whole)
        steps = self.steps(setup)

        def loss(step: int) -> Tensor:
            rows, z_lq = self.rows(step, 4, share)
            with amp():
                with torch.no_grad():
                    z = self.align(adapter, z_lq, FIDELITY)
                restored = network(z)
            z_hq, restored = self.train.z_hq[rows], restored.float()
            return setup.latent * losses.latent(restored, z_hq) + self.picture_loss(restored, rows, setup.pixel, setup.identity)

        seconds = self.optimise(network, steps, loss, Stopwatch())
        network.eval()
        torch.save(network.state_dict(), self.cache / f"prior_{setup.name}.pt")
        result = self.measure(lambda z: network(self.align(adapter, z, FIDELITY)))
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        result |= {"seconds": [seconds], "steps": [float(steps)], "learning": [float(learning)]}
        file.write_text(json.dumps(result))
        means = {m: round(float(np.mean(result[m])), 4) for m in METRICS}
        log.info("%s: %d steps, %.0f s, %d weights, %s", setup.name, steps, seconds, learning, means)
        return result

    def lora(self, whole: bool) -> nn.Module:
        """The pretrained prior with a fresh LoRA on its convolutions and attention, or with all its weights learning."""
        from peft import LoraConfig, inject_adapter_in_model

        network = self.pretrained()
        if whole:
            return network.requires_grad_(True)
        torch.manual_seed(self.budget.seed)
        targets = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="gaussian")
        return inject_adapter_in_model(config, network)

    def steps(self, setup: Setup) -> int:
        """The budget's, or what fills the time of all the base variant's stages at the pace of its last."""
        if not setup.equal_time:
            return self.budget.prior
        curve = json.loads((self.cache / "adapter_base.json").read_text())["curve"]
        seconds = json.loads((self.cache / "prior_base.json").read_text())["seconds"][0]
        return round(self.budget.prior * (curve[-1][0] + seconds) / seconds)

    def references(self) -> None:
        """What needs no training: the input through the autoencoder, the adapter alone, the base at other fidelities."""
        adapter = self.adapter("base")
        network = self.lora(whole=False)
        network.load_state_dict(torch.load(self.cache / "prior_base.pt", weights_only=True))
        network.eval()
        runs: dict[str, Callable[[Tensor], Tensor]] = {
            "input": lambda z: z,
            "adapter_alone": lambda z: self.align(adapter, z, FIDELITY),
        }
        for value in FIDELITIES:
            runs[f"fidelity_{value:g}"] = lambda z, value=value: network(self.align(adapter, z, value))  # type: ignore[misc]
        for name, run in runs.items():
            file = self.cache / f"{name}.json"
            if not file.is_file():
                file.write_text(json.dumps(self.measure(run)))

    @staticmethod
    def align(adapter: AdapterNet | None, z: Tensor, fidelity: float) -> Tensor:
        return z if adapter is None else adapter(z, torch.full((len(z), 1, 1, 1), fidelity)).latents

    @torch.no_grad()
    def measure(self, restore: Callable[[Tensor], Tensor]) -> dict[str, list[float]]:
        """PSNR, SSIM and dlib identity of every validation face."""
        pictures = torch.cat([self.vae.decode(restore(part)) for part in self.val.z_lq[0].split(8)])
        return {
            "psnr": psnr(pictures, self.originals).tolist(),
            "ssim": ssim(pictures, self.originals).tolist(),
            "identity": self.judge(pictures).tolist(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/ of 256 px FFHQ faces")
    parser.add_argument("--portraits", type=Path, required=True, help="folder with faces.csv: clean faces for the prior")
    parser.add_argument("--vae", type=Path, required=True, help="a LAFR vae file")
    parser.add_argument("--identity", type=Path, required=True, help="folder with mobilefacenet_foamliu.pt (the training loss)")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all step counts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing new after so long; run again to go on")
    parser.add_argument("--report-only", action="store_true", help="write the report from what the cache holds already")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    base = Budget()
    stages = ("pretraining", "codebook", "adapter", "encoder", "prior")
    budget = replace(base, **{k: max(1, round(getattr(base, k) * args.scale)) for k in stages})
    if not args.report_only:
        run(args, budget)
    from benchmarks.claims_report import write_report

    write_report(args.cache, args.out, budget, hashlib.sha256(args.vae.read_bytes()).hexdigest()[:12])


def run(args: argparse.Namespace, budget: Budget) -> None:
    """All that the cache lacks, the main comparisons first, until the time is up."""
    started = time.monotonic()
    vae = open_vae(args.vae)
    if not isinstance(vae, StarterVae):
        raise SystemExit(f"{args.vae}: expected a LAFR vae file; claims.py needs its encoder and decoder as networks")
    vae.network.to(memory_format=torch.channels_last)
    settings = asdict(budget) | {"adapter_net": ADAPTER, "prior_net": {**PRIOR, "widths": list(PRIOR["widths"])}}
    note = args.cache / "budget.json"
    if note.is_file() and json.loads(note.read_text()) != settings:
        raise SystemExit(f"{args.cache} holds results of another budget; give an empty folder")
    embed = TemplateEmbedder(load_mobilefacenet(args.identity), signed=False)
    bench = Bench(args.data, args.portraits, vae, embed, args.cache, budget)
    note.write_text(json.dumps(settings))
    jobs: list[Callable[[], object]] = [lambda setup=setup: bench.prior(setup) for setup in SETUPS]  # type: ignore[misc]
    jobs[3:3] = [lambda: bench.adapter("latent_only"), bench.encoder, bench.costs, bench.references]
    for job in jobs:
        if time.monotonic() - started > 60 * args.minutes:
            log.info("time is up; run the same command again to go on")
            return
        job()


if __name__ == "__main__":
    main()
