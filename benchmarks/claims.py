"""The paper's claims as an experiment on real FFHQ faces at 256 pixels, with small networks and a small budget.

    python -m benchmarks.claims --data ../shared/data/ffhq256_research --vae lafr_core/weights/vae.safetensors \\
        --identity ../shared/weights --cache /tmp/claims --out docs

Every variant sees the same split, seeds, degradations, steps and batch. Times are CPU seconds of one thread
(``process_time``), so other work on the machine does not count. 95 % intervals are paired bootstraps over the validation
faces. Each variant is kept in the cache as it finishes; a second run goes on where the first was stopped. Weights trained
here are never shipped (FFHQ is non-commercial).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lafr_core.metrics import psnr, ssim
from lafr_core.networks.adapter import AdapterNet
from lafr_core.networks.prior import PriorNet
from lafr_core.vaes import StarterVae, open_vae
from train import losses
from train.codebook_learning import CodebookLearner
from train.data import to_tensor
from train.degrade import degrade
from train.losses import TemplateEmbedder
from train.mobilefacenet import load_mobilefacenet

log = logging.getLogger("benchmarks.claims")
VARIANTS = 1
"""Degraded versions of each training picture; drawn once, so that latents can be stored."""
METRICS = ("psnr", "ssim", "identity")
ADAPTER = {"width": 32, "coarse": 64, "deep": 96, "code_width": 32, "entries": 256, "depth": 1, "grid": 32}
PRIOR = {"widths": (32, 64, 96), "depth": 2, "grid": 32}


@dataclass(frozen=True)
class Budget:
    """What every variant gets."""

    codebook: int = 100
    adapter: int = 120
    prior: int = 80
    batch: int = 12
    decoded: int = 1
    """Rows of each batch that go through the decoder for the picture terms."""
    lr: float = 1.5e-3
    validation: int = 60
    seed: int = 0


@dataclass
class Faces:
    """Pictures (N, 3, 256, 256) and latents (N, 4, 32, 32) of one split; ``lq`` has one list entry a degraded version."""

    hq: Tensor
    lq: list[Tensor]
    z_hq: Tensor
    z_lq: list[Tensor]
    crops: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """One variant of the prior stage."""

    name: str
    adapter: str | None = "base"
    share: float = 1.0
    latent: float = 1.0
    pixel: float = 1.0
    identity: float = 0.2
    longer: int = 0
    """Steps beyond the budget."""


class Bench:
    """The experiment: data, networks and what was measured so far."""

    def __init__(self, data: Path, vae: StarterVae, embed: nn.Module, cache: Path, budget: Budget) -> None:
        self.vae, self.embed, self.cache, self.budget = vae, embed, cache, budget
        cache.mkdir(parents=True, exist_ok=True)
        self.train = self._faces(data / "train", VARIANTS, None)
        self.val = self._faces(data / "val", 1, budget.validation)
        self.judge = DlibIdentity(self.val.hq)

    @torch.no_grad()
    def _faces(self, folder: Path, variants: int, limit: int | None) -> Faces:
        file = self.cache / f"{folder.name}.pt"
        if file.is_file():
            return Faces(**torch.load(file, weights_only=True))
        paths = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg", ".webp"))[:limit]
        hq, lq = [], [[] for _ in range(variants)]
        for i, path in enumerate(paths):
            with Image.open(path) as image:
                sharp = np.asarray(image.convert("RGB").resize((256, 256)), dtype=np.float32) / 255
            hq.append(to_tensor(sharp))
            for v in range(variants):
                lq[v].append(to_tensor(degrade(sharp, np.random.default_rng([self.budget.seed, i, v]))[0]))
        sharp_pictures, spoilt = torch.stack(hq), [torch.stack(one) for one in lq]
        encode = lambda x: torch.cat([self.vae.encode(part) for part in x.split(8)])
        faces = Faces(sharp_pictures, spoilt, encode(sharp_pictures), [encode(one) for one in spoilt])
        torch.save({"hq": faces.hq, "lq": faces.lq, "z_hq": faces.z_hq, "z_lq": faces.z_lq}, file)
        log.info("%s: %d faces", folder, len(paths))
        return faces

    def rows(self, step: int, seed: int, share: float = 1.0) -> tuple[Tensor, int]:
        """The picture numbers of a training step and which degraded version they come in: the same for every variant."""
        generator = np.random.default_rng([self.budget.seed, seed, step])
        count = max(1, round(share * len(self.train.hq)))
        return torch.from_numpy(generator.integers(0, count, self.budget.batch)), int(generator.integers(VARIANTS))

    def optimise(self, parameters: Sequence[nn.Parameter], steps: int, loss: Callable[[int], Tensor]) -> float:
        """AdamW with warm-up and cosine; returns CPU seconds."""
        optimizer = torch.optim.AdamW(parameters, lr=self.budget.lr, weight_decay=1e-4, betas=(0.9, 0.99))
        started = time.process_time()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss(step).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return time.process_time() - started

    def rate(self, step: int, steps: int) -> float:
        return self.budget.lr * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * step / steps))))

    def picture_loss(self, z: Tensor, rows: Tensor, setup: Setup) -> Tensor:
        """Pixel and identity terms of the first ``decoded`` rows."""
        few = self.budget.decoded
        if setup.pixel == 0 and setup.identity == 0:
            return z.new_zeros(())
        pictures, target = self.vae.network.decoder(z[:few]), self.train.hq[rows[:few]]  # type: ignore[operator]
        total = z.new_zeros(())
        if setup.pixel > 0:
            total = total + setup.pixel * (losses.pixel(pictures, target) + losses.gradient(pictures, target))
        if setup.identity > 0:
            total = total + setup.identity * losses.identity(pictures, target, self.embed)
        return total

    def codebook(self, top_k: int = 1) -> AdapterNet:
        """Stage 1 on clean latents."""
        torch.manual_seed(self.budget.seed)
        network = AdapterNet(**ADAPTER, top_k=top_k)  # type: ignore[arg-type]
        network.codebook.requires_grad_(False)
        learner = CodebookLearner(network.codebook, torch.Generator().manual_seed(0))

        def loss(step: int) -> Tensor:
            z = self.train.z_hq[self.rows(step, 1)[0]]
            if step in (0, self.budget.codebook // 3):
                with torch.no_grad():
                    learner.start(network.extractor(self.train.z_hq[:64]).code)
            out = network(z, z.new_zeros(len(z), 1, 1, 1))
            learner.update(out.features.code, out.match.indices, out.match.distance)
            return losses.latent(out.latents, z) + 0.25 * losses.commitment(out.features.code, out.match.quantised)

        self.optimise([p for p in network.parameters() if p.requires_grad], self.budget.codebook, loss)
        return network

    def adapter(self, name: str) -> tuple[AdapterNet, list[tuple[float, float]]]:
        """Stage 2 (``base``, ``topk``), from the cache when it is there; with the alignment error against CPU seconds."""
        file = self.cache / f"adapter_{name}.pt"
        top_k = 4 if name == "topk" else 1
        if file.is_file():
            network = AdapterNet(**ADAPTER, top_k=top_k)  # type: ignore[arg-type]
            state = torch.load(file, weights_only=True)
            network.load_state_dict(state["network"])
            return network.eval().requires_grad_(False), [(a, b) for a, b in state["curve"]]
        teacher = self.codebook(top_k)
        network = copy.deepcopy(teacher)
        network.codebook.requires_grad_(False)
        curve: list[tuple[float, float]] = []
        watch = Stopwatch()

        def loss(step: int) -> Tensor:
            rows, version = self.rows(step, 2)
            z_hq, z_lq = self.train.z_hq[rows], self.train.z_lq[version][rows]
            with torch.no_grad():
                anchors = teacher.codebook(teacher.extractor(z_hq).code)
            fidelity = torch.from_numpy(np.random.default_rng([3, step]).random((len(rows), 1, 1, 1), dtype=np.float32))
            out = network(z_lq, fidelity)
            book = network.codebook
            value = losses.latent(out.latents, z_hq) + 0.25 * losses.commitment(out.features.code, anchors.quantised)
            value = value + 0.05 * losses.code(out.features.code, book.codes.weight, book.spread, anchors.indices)
            if step % 20 == 0:
                with watch.paused():
                    curve.append(
                        (watch.seconds(), self.alignment_error(lambda z: network(z, torch.ones(len(z), 1, 1, 1)).latents))
                    )
            return value + self.picture_loss(out.latents, rows, Setup("adapter"))

        self.optimise([p for p in network.parameters() if p.requires_grad], self.budget.adapter, loss)
        curve.append((watch.seconds(), self.alignment_error(lambda z: network(z, torch.ones(len(z), 1, 1, 1)).latents)))
        torch.save({"network": network.state_dict(), "curve": curve}, file)
        return network.eval().requires_grad_(False), curve

    @torch.no_grad()
    def alignment_error(self, align: Callable[[Tensor], Tensor]) -> float:
        """Mean L1 between aligned and clean latents of the validation faces."""
        return float((align(self.val.z_lq[0]) - self.val.z_hq).abs().mean())

    def encoder(self) -> list[tuple[float, float]]:
        """The alternative to an adapter: fine-tune the encoder itself on the same pairs. Alignment error against CPU
        seconds.
        """
        file = self.cache / "encoder.json"
        if file.is_file():
            return [(a, b) for a, b in json.loads(file.read_text())]
        encoder = copy.deepcopy(self.vae.network.encoder).train().requires_grad_(True)  # type: ignore[union-attr, operator]
        curve: list[tuple[float, float]] = []
        watch = Stopwatch()

        def error() -> float:
            with torch.no_grad():
                z = torch.cat([encoder(part) for part in self.val.lq[0].split(8)])
            return float((z - self.val.z_hq).abs().mean())

        def loss(step: int) -> Tensor:
            rows, version = self.rows(step, 2)
            z = encoder(self.train.lq[version][rows])
            if step % 10 == 0:
                with watch.paused():
                    curve.append((watch.seconds(), error()))
            return losses.latent(z, self.train.z_hq[rows]) + self.picture_loss(z, rows, Setup("encoder"))

        # Half of the adapter's steps: each costs several times as much.
        self.optimise(list(encoder.parameters()), self.budget.adapter // 2, loss)
        curve.append((watch.seconds(), error()))
        file.write_text(json.dumps(curve))
        return curve

    def prior(self, setup: Setup) -> dict[str, list[float]]:
        """Stage 3: train the prior as ``setup`` says and measure it; cached by name."""
        file = self.cache / f"prior_{setup.name}.json"
        if file.is_file():
            return dict(json.loads(file.read_text()))
        adapter = self.adapter(setup.adapter)[0] if setup.adapter else None
        torch.manual_seed(self.budget.seed)
        network = PriorNet(**PRIOR)  # type: ignore[arg-type]

        def loss(step: int) -> Tensor:
            rows, version = self.rows(step, 4, setup.share)
            z_hq, z = self.train.z_hq[rows], self.align(adapter, self.train.z_lq[version][rows], 0.5)
            restored = network(z)
            return setup.latent * losses.latent(restored, z_hq) + self.picture_loss(restored, rows, setup)

        seconds = self.optimise(list(network.parameters()), self.budget.prior + setup.longer, loss)
        network.eval().requires_grad_(False)
        torch.save(network.state_dict(), self.cache / f"prior_{setup.name}.pt")
        result = self.measure(adapter, network, 0.5)
        result["seconds"] = [seconds]
        file.write_text(json.dumps(result))
        log.info("%s: %s", setup.name, {m: round(float(np.mean(result[m])), 4) for m in METRICS})
        return result

    def fidelity(self, value: float) -> dict[str, list[float]]:
        """The base prior at another fidelity; cached."""
        file = self.cache / f"fidelity_{value}.json"
        if not file.is_file():
            network = PriorNet(**PRIOR)  # type: ignore[arg-type]
            network.load_state_dict(torch.load(self.cache / "prior_base.pt", weights_only=True))
            file.write_text(json.dumps(self.measure(self.adapter("base")[0], network.eval(), value)))
        return dict(json.loads(file.read_text()))

    @staticmethod
    @torch.no_grad()
    def align(adapter: AdapterNet | None, z: Tensor, fidelity: float) -> Tensor:
        return z if adapter is None else adapter(z, torch.full((len(z), 1, 1, 1), fidelity)).latents

    @torch.no_grad()
    def measure(
        self, adapter: AdapterNet | None, network: Callable[[Tensor], Tensor], fidelity: float
    ) -> dict[str, list[float]]:
        """PSNR, SSIM and dlib identity of every validation face."""
        z = self.val.z_lq[0]
        pictures = torch.cat([self.vae.decode(network(self.align(adapter, part, fidelity))) for part in z.split(8)])
        return {
            "psnr": psnr(pictures, self.val.hq).tolist(),
            "ssim": ssim(pictures, self.val.hq).tolist(),
            "identity": self.judge(pictures).tolist(),
        }


class Stopwatch:
    """CPU seconds since it was made, without what was spent in :meth:`paused`."""

    def __init__(self) -> None:
        self.started, self.lost = time.process_time(), 0.0

    def seconds(self) -> float:
        return time.process_time() - self.started - self.lost

    def paused(self) -> Any:
        import contextlib

        @contextlib.contextmanager
        def pause() -> Any:
            begun = time.process_time()
            yield
            self.lost += time.process_time() - begun

        return pause()


class DlibIdentity:
    """Identity by dlib's face network, which nothing here is trained against. 1 = the same descriptor.

    dlib's descriptors of any two faces lie close together, so the mean descriptor of the clean validation faces is taken off
    before the cosine: 0 is then "as alike as two strangers".
    """

    def __init__(self, originals: Tensor) -> None:
        import dlib
        import face_recognition_models

        self.network = dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())
        raw = self.describe(originals)
        self.mean = raw.mean(0)
        self.originals = raw - self.mean

    def describe(self, pictures: Tensor) -> NDArray[np.float64]:
        """(N, 3, 256, 256) -> (N, 128). The middle of the FFHQ crop is about dlib's own chip: eyes at 30 % and 70 %."""
        rows = []
        for picture in pictures:
            pixels = (picture.permute(1, 2, 0).numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
            chip = Image.fromarray(pixels[52:224, 42:214]).resize((150, 150), Image.Resampling.BICUBIC)
            rows.append(np.asarray(self.network.compute_face_descriptor(np.asarray(chip))))
        return np.stack(rows)

    def __call__(self, pictures: Tensor) -> NDArray[np.float64]:
        a, b = self.describe(pictures) - self.mean, self.originals
        return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def interval(values: NDArray[np.float64], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (draws, len(values)))].mean(1)
    return float(values.mean()), float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def relative(a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Relative gain of mean(a) over mean(b) in per cent with its 95 % interval, the same faces drawn for both."""
    x, y = np.asarray(a), np.asarray(b)
    rows = np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))
    gains = 100 * (x[rows].mean(1) / y[rows].mean(1) - 1)
    return float(100 * (x.mean() / y.mean() - 1)), float(np.percentile(gains, 2.5)), float(np.percentile(gains, 97.5))


def training_bytes(network: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes one training step holds: tensors saved for the backward pass, gradients and Adam's two moments."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run().sum().backward()
    learning = sum(p.numel() * 4 for p in network.parameters() if p.requires_grad)
    return sum(saved.values()) + 3 * learning


def time_to(curve: Sequence[tuple[float, float]], error: float) -> float | None:
    """CPU seconds until the curve first reaches ``error``, or None."""
    return next((seconds for seconds, value in curve if value <= error), None)


SETUPS = (
    Setup("base"),
    Setup("no_adapter", adapter=None),
    Setup("third", share=210 / 630),
    Setup("tenth", share=70 / 630),
    Setup("no_identity", identity=0.0),
    Setup("no_pixel", pixel=0.0),
    Setup("no_latent", latent=0.0),
    Setup("topk", adapter="topk"),
    Setup("no_adapter_longer", adapter=None, longer=Budget.adapter + Budget.codebook),
)
FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/ of 256 px FFHQ faces")
    parser.add_argument("--vae", type=Path, help="a LAFR vae file; default: the starter's")
    parser.add_argument("--identity", type=Path, required=True, help="folder with mobilefacenet_foamliu.pt (the training loss)")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all step counts")
    parser.add_argument("--report-only", action="store_true", help="write the report from what the cache holds already")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    base = Budget()
    budget = replace(base, **{k: max(1, round(getattr(base, k) * args.scale)) for k in ("codebook", "adapter", "prior")})
    vae = open_vae(args.vae)
    assert isinstance(vae, StarterVae), "claims.py works with a LAFR vae file"
    if not args.report_only:
        embed = TemplateEmbedder(load_mobilefacenet(args.identity), signed=False)
        bench = Bench(args.data, vae, embed, args.cache, budget)
        for number, setup in enumerate(SETUPS):
            bench.prior(setup)
            if number == 1:
                memory = {
                    "adapter": training_bytes_of_adapter(bench),
                    "encoder": training_bytes_of_encoder(bench),
                }
                (args.cache / "memory.json").write_text(json.dumps(memory))
                bench.encoder()
                for value in FIDELITIES:
                    bench.fidelity(value)
    digest = hashlib.sha256(args.vae.read_bytes()).hexdigest()[:12] if args.vae else "starter"
    from benchmarks.claims_report import write_report

    write_report(args.cache, args.out, budget, digest)


def training_bytes_of_adapter(bench: Bench) -> int:
    network = AdapterNet(**ADAPTER)  # type: ignore[arg-type]
    z = bench.train.z_lq[0][: bench.budget.batch]
    return training_bytes(network, lambda: network(z, torch.ones(len(z), 1, 1, 1)).latents)


def training_bytes_of_encoder(bench: Bench) -> int:
    encoder = copy.deepcopy(bench.vae.network.encoder).train().requires_grad_(True)  # type: ignore[union-attr, operator]
    return training_bytes(encoder, lambda: encoder(bench.train.lq[0][: bench.budget.batch]))


if __name__ == "__main__":
    main()
