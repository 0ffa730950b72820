"""The one record that describes a training run: frozen dataclasses <-> YAML, every value overridable on the command line.

    python -m train adapter --config train/configs/smoke.yaml --adapter.lr 1e-4 --subset 0.009 --subset-seed 0

``--section.name value``; the section may be left out where the name occurs once. An unknown key names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lafr_core.errors import SettingsError


@dataclass(frozen=True)
class Data:
    """Where the faces come from and how they are spoilt."""

    source: str = ""
    """Folder of face pictures (any layout), one with faces.csv or manifest.csv, or ``drawn:N`` for N pictures it draws
    itself. Several are separated by semicolons.
    """
    validation: str = ""
    """The same for validation; empty = no sample sheets."""
    size: int = 512
    """Side of the training crops in pixels; a multiple of 32."""
    subset: float = 1.0
    """Share of the files to use, in (0, 1]; 0.009 of FFHQ is the paper's 630."""
    subset_seed: int = 0
    balance: str = ""
    """Column of faces.csv or manifest.csv (source, age, gender, …) whose values are drawn equally often; ages by ten years.
    Empty = every picture alike.
    """
    subset_method: str = "random"
    """random, or k-centre: greedy farthest points over the latents, the most varied subset."""
    severity: str = "full"
    """Degradation: full, mild, medium, severe, mix, or a paper's: gfpgan, codeformer, osediff (train.data.degradation)."""
    flip: float = 0.5
    """Probability of mirroring a picture (stored pairs are mirrored when they are made)."""
    least: float = 0.0
    """Leave out pictures with fewer pixels in their file than this for each of the crop: enlarged, they are not sharp."""
    stretch: float = 0.0
    """Fresh faces: how unequally the two directions are scaled, at most, as a share; six tenths of it is sheared."""
    bend: float = 0.0
    """Fresh faces: standard deviation, in pixels of a 512 crop, of the smooth displacement that gives other proportions."""
    decoded: bool = False
    """Fresh faces: keep all photos decoded in memory, shared by the workers. Does not change what is drawn."""
    workers: int = 2
    """Loader processes. Does not change what is drawn."""
    fidelity: float = 0.75
    """The fidelity that ``fidelity_share`` of the samples are trained at; the others are anywhere in [0, 1]."""
    fidelity_share: float = 0.0
    pairs: str = ""
    """Folder of stored latents: ``python -m train pairs`` fills it, the stages then learn from it instead of ``source``."""
    second_pairs: str = ""
    """The same of another autoencoder (``models.second_vae``), so that an adapter works behind both."""
    second_share: float = 0.25
    """Share of samples from ``second_pairs``."""
    held: bool = False
    """Keep the stored pairs in the device's memory and make whole batches there: no file is read in a step, and no workers are
    needed. Does not change what is drawn.
    """
    window: int = 0
    """Stored pairs: side, in latent cells, of the windows that are decoded for the picture terms; 0 = whole faces."""
    second_window: int = 0
    """The same for ``second_pairs``, not above ``window``; 0 = as ``window``."""
    windows: int = 1
    """Windows of every sample."""
    around: int = 0
    """Windows keep so far from the crop's edge that this side of cells can be cut out around them: what a local prior sees."""
    middle: float = 0.0
    """Share of windows drawn over eyes and mouth instead of anywhere."""

    def check(self) -> None:
        known = ("full", "mild", "medium", "severe", "mix", "gfpgan", "codeformer", "osediff")
        _require(self.size > 0 and self.size % 32 == 0, "data.size", "a positive multiple of 32", self.size)
        _require(0 < self.subset <= 1, "data.subset", "a share in (0, 1]", self.subset)
        _require(self.subset_method in ("random", "k-centre"), "data.subset_method", "random or k-centre", self.subset_method)
        _require(self.severity in known, "data.severity", f"one of {', '.join(known)}", self.severity)
        for key in ("least", "bend"):
            _require(getattr(self, key) >= 0, f"data.{key}", "0 or more", getattr(self, key))
        for key in ("fidelity", "fidelity_share", "second_share", "middle", "stretch"):
            _require(0 <= getattr(self, key) <= 1, f"data.{key}", "a number in [0, 1]", getattr(self, key))
        cells = self.size // 8
        for key in ("window", "second_window", "around"):
            _require(0 <= getattr(self, key) <= cells, f"data.{key}", f"0 to {cells} cells", getattr(self, key))
        _require(self.second_window <= self.window, "data.second_window", "at most data.window", self.second_window)
        _require(self.around in (0, *range(self.window, cells + 1)), "data.around", "0, or data.window and more", self.around)
        _require(self.windows >= 1, "data.windows", "1 or more", self.windows)
        _require(not self.held or not self.second_pairs, "data.held", "no data.second_pairs beside it", self.held)
        _require(0 <= self.flip <= 1, "data.flip", "a probability in [0, 1]", self.flip)
        _require(self.workers >= 0, "data.workers", "0 or more", self.workers)


@dataclass(frozen=True)
class Models:
    """Weights a run starts from."""

    vae: str = ""
    """VAE folder or file, or a folder with a TAESD sibling's two files; empty = the starter VAE of this repository."""
    family: str = "sd"
    second_vae: str = ""
    """The autoencoder of ``data.second_pairs``; empty = their windows are not decoded, only their latents count."""
    unet: str = ""
    """diffusers UNet (or pipeline) folder, or one SD 1.x/2.x .safetensors file, for the prior's LoRA; empty = train the small
    starter prior instead.
    """
    init: str = ""
    """LAFR .safetensors of the trained network to go on from, with its own architecture; depths of ``network`` that are
    larger grow it, without changing what it does at first. Empty = a new network.
    """
    thumbnail: str = ""
    """File of the thumbnail stage: what identity terms look at where windows are decoded."""
    codebook: str = ""
    """Codebook run or checkpoint that the adapter stage starts from; empty = this run's own."""
    adapter: str = ""
    """Adapter run, checkpoint or .safetensors the prior stage uses; empty = this run's own; ``none`` = no
    adapter.
    """


@dataclass(frozen=True)
class Network:
    """Sizes of the adapter (lafr_core.latent.networks.adapter) and of the starter prior."""

    width: int = 64
    coarse: int = 128
    deep: int = 160
    code_width: int = 64
    entries: int = 1024
    top_k: int = 1
    """1 = nearest code; more = soft assignment over the k nearest."""
    depth: int = 2
    deep_depth: int = 1
    """Attention layers on the coarsest grid."""
    grid: int = 64
    """Side of the latents the position tables are made for; data.size / 8."""
    prior_widths: tuple[int, ...] = (64, 160, 320)
    prior_depth: int = 3
    prior_groups: int = 8
    """Of the prior's normalisation; 0 = none."""
    prior_attention: bool = True
    """Two attention layers on the prior's coarsest grid. Without them and without normalisation it is local: data.window."""
    prior_sharpen: float = 0.0
    """Above 0 the prior only raises or lowers differences from the surroundings, by this share at most."""

    def check(self) -> None:
        _require(self.grid % 4 == 0 and self.grid > 0, "network.grid", "a positive multiple of 4", self.grid)
        _require(1 <= self.top_k <= self.entries, "network.top_k", f"1 to network.entries = {self.entries}", self.top_k)
        _require(len(self.prior_widths) == 3, "network.prior_widths", "three numbers", self.prior_widths)
        for key in ("depth", "prior_depth"):
            _require(getattr(self, key) >= 1, f"network.{key}", "1 or more", getattr(self, key))
        for key in ("deep_depth", "prior_groups", "prior_sharpen"):
            _require(getattr(self, key) >= 0, f"network.{key}", "0 or more", getattr(self, key))


@dataclass(frozen=True)
class Stage:
    """How one stage is optimised. One step = ``batch`` x ``accumulate`` x processes pictures."""

    steps: int = 20000
    batch: int = 4
    accumulate: int = 1
    lr: float = 1e-4
    warmup: int = 200
    """Steps of linear warm-up."""
    hold: float = 0.0
    """Share of the run at the full rate before the cosine decay to ``final`` begins."""
    final: float = 0.02
    """Learning rate at the end, as a share of ``lr``."""
    falls: str = "cosine"
    """How the rate falls after ``hold``: cosine, or linear, which is straight towards 0 and stays at ``final``."""
    weight_decay: float = 1e-4
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights that are exported; warms up from 0."""
    precision: str = "no"
    """no (float32), bf16 or fp16. YAML's bare ``no`` counts as the word."""
    tf32: bool = False
    """Let a GPU multiply float32 matrices in TF32: faster, about three decimal digits."""
    compile: bool = False
    """torch.compile the model: slower to start, faster steps."""
    optimizer: str = "adamw"
    """adamw, adamw8bit (bitsandbytes), or muon (train.engine.optimizers): better per step on small convolutional nets."""

    def check(self, name: str) -> None:
        for key in ("steps", "batch", "accumulate"):
            _require(getattr(self, key) >= 1, f"{name}.{key}", "1 or more", getattr(self, key))
        _require(self.lr > 0, f"{name}.lr", "above 0", self.lr)
        for key in ("ema", "hold", "beta1"):
            _require(0 <= getattr(self, key) < 1, f"{name}.{key}", "in [0, 1)", getattr(self, key))
        _require(self.precision in ("no", "bf16", "fp16"), f"{name}.precision", "no, bf16 or fp16", self.precision)
        _require(self.falls in ("cosine", "linear"), f"{name}.falls", "cosine or linear", self.falls)
        known = ("adamw", "adamw8bit", "muon")
        _require(self.optimizer in known, f"{name}.optimizer", "adamw, adamw8bit or muon", self.optimizer)


@dataclass(frozen=True)
class CodebookStage(Stage):
    """Stage 1: extractor, codebook and mapping reconstruct high-quality latents."""

    decay: float = 0.99
    """Of the codebook's running means (van den Oord et al. 2017, appendix A.1)."""
    revive: float = 0.1
    """A code whose share of use falls below this part of the average is dead and moves to a current feature."""
    kmeans_at: tuple[int, ...] = (0, 300)
    """Steps at which the codebook is set by k-means over current features."""


@dataclass(frozen=True)
class PairsStage:
    """What ``python -m train pairs`` stores in ``data.pairs``: latents by ``models.vae`` of ``data.source``'s faces."""

    rounds: int = 1
    """How often every picture is drawn anew: moved, mirrored and tinted."""
    versions: int = 4
    """Degradations of every draw; 0 = clean latents alone, all that the diffusion stage reads."""
    limit: int = 0
    """Pictures of each round, in its random order; 0 = all."""
    shard: int = 30
    """Pictures a file."""
    window: int = 0
    """Side in pixels (a multiple of 32) of the part of each crop that is encoded, at random; 0 = the whole crop."""
    pixels: bool = True
    """Keep the clean pixels too: for windows, thumbnails and the autoencoder."""
    degraded: bool = False
    """Keep the degraded pixels too: for the autoencoder."""
    beside: bool = False
    """Keep the starter autoencoder's latents too: for the families' start."""
    aligned: bool = False
    """Keep the degraded latents as ``models.adapter`` aligns them too: for the prior and the critic, who need not run it."""
    precision: str = "bf16"
    """Of the encoder: no, bf16 or fp16."""
    workers: int = 0
    """Processes that draw and degrade while this one encodes. Does not change what is drawn."""

    def check(self, name: str) -> None:
        _require(self.workers >= 0, f"{name}.workers", "0 or more", self.workers)
        for key in ("rounds", "shard"):
            _require(getattr(self, key) >= 1, f"{name}.{key}", "1 or more", getattr(self, key))
        for key in ("versions", "limit"):
            _require(getattr(self, key) >= 0, f"{name}.{key}", "0 or more", getattr(self, key))
        _require(self.window >= 0 and self.window % 32 == 0, f"{name}.window", "0 or a multiple of 32", self.window)
        _require(self.precision in ("no", "bf16", "fp16"), f"{name}.precision", "no, bf16 or fp16", self.precision)


@dataclass(frozen=True)
class VaeStage(Stage):
    """The starter autoencoder, on patches of stored pairs whose latents are the teacher's (pairs.pixels, pairs.degraded)."""

    patch: int = 20
    """Side of the patches in latent cells."""
    latent_weight: float = 0.5
    """Weight of the distance to the teacher's latents."""
    degraded: float = 0.4
    """Share of patches from degraded pictures, where they were stored."""


@dataclass(frozen=True)
class ThumbnailStage(Stage):
    """Latents to a small picture (train.judges.thumbnail), on stored pairs with pixels."""


@dataclass(frozen=True)
class ConfidenceStage(Stage):
    """The adapter's confidence map (lafr_core.latent.networks.confidence), on stored pairs."""

    width: int = 16
    """Channels at half the latents' size."""
    deep: int = 24
    """Channels at a quarter and an eighth of it."""

    def check(self, name: str) -> None:
        super().check(name)
        for key in ("width", "deep"):
            _require(getattr(self, key) >= 1, f"{name}.{key}", "1 or more", getattr(self, key))


@dataclass(frozen=True)
class FamiliesStage(Stage):
    """The adapter for another latent family, grafted from a donor, on stored pairs with the starter's latents beside."""

    donor: str = ""
    """Adapter file to start from; empty = the starter's."""
    colour: float = 0.2
    """Weight of the log mean squared error of the cells' colours; 0 = the decoder is not needed."""
    anchor: float = 0.05
    """Weight of the distance between a degraded face's features and the sharp face's entries."""


@dataclass(frozen=True)
class Judged(Stage):
    """A stage whose pictures a critic on frozen features judges (train.judges.projected)."""

    features: str = "efficientnet-lite0"
    """The frozen networks whose features the critic sees, separated by semicolons: efficientnet-lite0, efficientnet-lite2;
    ``random`` = a small untrained one, for trials without weights.
    """
    weight: float = 0.12
    """Of fooling the critic."""
    start: int = 0
    """Steps before the made pictures are asked to fool the critic; it learns from the first."""
    ramp: int = 0
    """Steps over which ``weight`` then grows from 0."""
    near: float = 1.0
    """Of the distance between features of the made and of the real picture."""
    pixel: float = 2.0
    head_width: int = 40
    """Channels the features are projected to, at random and fixed."""
    head_hidden: int = 64
    """Channels inside a head."""
    head_layers: int = 1
    """Convolutions of 3x3 in a head."""
    head_lr: float = 2e-4
    """The critic's own learning rate (Adam, betas 0 and 0.99)."""

    def check(self, name: str) -> None:
        super().check(name)
        known = ("efficientnet-lite0", "efficientnet-lite2", "random")
        named = self.features.split(";")
        fine = all(part.strip() in known for part in named)
        _require(fine, f"{name}.features", f"{', '.join(known[:-1])} or random", self.features)
        for key in ("head_width", "head_hidden", "head_layers"):
            _require(getattr(self, key) >= 1, f"{name}.{key}", "1 or more", getattr(self, key))
        for key in ("weight", "near", "pixel", "start", "ramp"):
            _require(getattr(self, key) >= 0, f"{name}.{key}", "0 or more", getattr(self, key))


@dataclass(frozen=True)
class CriticStage(Judged):
    """The generative prior: the critic tells drawn from real windows, given the aligned picture."""

    identity: float = 0.7
    """Of 1 - cosine of whole faces, seen by loss.identity_weights every ``identity_every`` steps; 0 = off."""
    identity_every: int = 2

    def check(self, name: str) -> None:
        super().check(name)
        _require(self.identity_every >= 1, f"{name}.identity_every", "1 or more", self.identity_every)
        _require(self.identity >= 0, f"{name}.identity", "0 or more", self.identity)


@dataclass(frozen=True)
class JointStage(Judged):
    """Adapter and prior together on fresh faces. ``lr`` is the prior's; section ``loss`` holds the adapter's terms."""

    adapter_lr: float = 3e-4
    """The adapter's learning rate where ``lr`` is the prior's; it rises and falls alike."""
    adapter_beta1: float = 0.9
    adapter_decay: float = 1e-3
    """The adapter's weight decay."""
    identity: float = 2.0
    """Of 1 - cosine between finished and real faces, seen by loss.identity_weights; 0 = off."""
    latent: float = 1.0
    """Of the distance between finished and clean latents."""
    close: float = 0.5
    """Weight of the close-ups of eyes and mouth beside the whole face, in ``near`` and ``weight``."""

    def check(self, name: str) -> None:
        super().check(name)
        _require(self.adapter_lr > 0, f"{name}.adapter_lr", "above 0", self.adapter_lr)
        _require(0 <= self.adapter_beta1 < 1, f"{name}.adapter_beta1", "in [0, 1)", self.adapter_beta1)
        for key in ("adapter_decay", "identity", "latent", "close"):
            _require(getattr(self, key) >= 0, f"{name}.{key}", "0 or more", getattr(self, key))
        _require(self.optimizer == "adamw", f"{name}.optimizer", "adamw, whose rates the two networks have", self.optimizer)


@dataclass(frozen=True)
class DecoderStage(Judged):
    """The starter decoder's finish: the critic tells decoded patches from photos, given what the decoder made before.

    Without data.pairs on fresh faces: whole ones, of which the critic sees views anywhere; ``data.second_share`` of them is in
    the latents of ``models.second_vae``.
    """

    own: float = 0.75
    """Share of clean patches in the starter encoder's latents (pairs.beside); the others are in those of ``models.vae``'s.
    Stored pairs only.
    """
    coarse: float = 0.0
    """Of the distance between the means of 8x8 pixels: the colours that the other terms let drift."""
    lattice: float = 20.0
    """Of what the places of neighbouring cells have in common and the photo has not: a grid, which a critic hardly sees."""
    blend: float = 0.85
    """How far the written decoder goes from what it was to what was learned (arXiv 1809.00219): texture against PSNR."""
    restored: float = 0.3
    """Share of patches in latents that the adapter aligned (pairs.aligned): smoother, and what is decoded in use."""
    finished: float = 0.0
    """Share of those that a prior finished too; fresh faces only."""
    prior: str = ""
    """The file of that prior; empty = the shipped one."""

    def check(self, name: str) -> None:
        super().check(name)
        for key in ("own", "restored", "finished", "blend"):
            _require(0 <= getattr(self, key) <= 1, f"{name}.{key}", "a share in [0, 1]", getattr(self, key))
        for key in ("lattice", "coarse"):
            _require(getattr(self, key) >= 0, f"{name}.{key}", "0 or more", getattr(self, key))


@dataclass(frozen=True)
class DiffusionStage(Stage):
    """A small diffusion prior of SD's interface: a denoiser over all timesteps in latent space, empty text."""

    prediction: str = "epsilon"
    """epsilon or v_prediction."""
    channels: tuple[int, ...] = (64, 128, 192, 192)
    """Of the UNet2DConditionModel's four levels; its lower three have attention. 19 million parameters."""
    layers: int = 1
    context: int = 768
    """Width of the text embedding, SD 1.5's; the empty prompt is one constant token of zeros."""

    def check(self, name: str) -> None:
        super().check(name)
        known = ("epsilon", "v_prediction")
        _require(self.prediction in known, f"{name}.prediction", "epsilon or v_prediction", self.prediction)
        fits = len(self.channels) >= 2 and all(width % 32 == 0 for width in self.channels)
        _require(fits, f"{name}.channels", "two or more multiples of 32", self.channels)


@dataclass(frozen=True)
class AdapterStage(Stage):
    """Stage 2: the extractor learns to find the high-quality anchors from degraded latents."""

    train_mapping: bool = True
    """Whether the mapping learns too, or only the extractor and what acts above fidelity 0."""


@dataclass(frozen=True)
class PriorStage(Stage):
    """Stage 3: one UNet step from aligned to restored latents."""

    rank: int = 4
    alpha: float = 4.0
    """LoRA scale is alpha / rank."""
    timestep: int = 399
    prediction: str = ""
    """epsilon or v_prediction; empty = what the scheduler config beside the UNet says."""
    context: str = ""
    """Stored empty-prompt embedding; empty = beside the UNet, else computed from the pipeline folder."""
    checkpointing: bool = True
    """Recompute the UNet's activations in the backward pass: less memory, about a third slower."""
    lora_more: bool = False
    """LoRA on the projections around the transformers and on their feed-forward layers as well: with the adapter, more than
    7.5 M parameters.
    """

    def check(self, name: str) -> None:
        super().check(name)
        _require(self.rank >= 1, f"{name}.rank", "1 or more", self.rank)
        _require(0 <= self.timestep < 1000, f"{name}.timestep", "0 to 999", self.timestep)
        allowed = ("", "epsilon", "v_prediction", "sample")
        _require(self.prediction in allowed, f"{name}.prediction", "epsilon, v_prediction or sample", self.prediction)


@dataclass(frozen=True)
class FinderStage(Stage):
    """The starter detector's finder, on composites of portraits (train.data.composites)."""

    canvas: int = 224
    """Side of the composites in pixels; a multiple of 32."""

    def check(self, name: str) -> None:
        super().check(name)
        _require(self.canvas > 0 and self.canvas % 32 == 0, f"{name}.canvas", "a positive multiple of 32", self.canvas)


@dataclass(frozen=True)
class CloseUpStage(Stage):
    """The starter detector's second look, on close-ups of faces and of the finder's mistakes."""

    finder: str = ""
    """A detector file: train.tasks.detector's, or a whole detector whose finder is kept."""
    mined: int = 600
    """Composites, and half as many portraits, that the finder is tried on for its mistakes."""
    go_on: bool = False
    """Start from the second look in ``finder``'s file instead of from nothing."""
    bend: float = 0.0
    """How much faces are stretched and sheared at random: standard deviation, as a share."""


@dataclass(frozen=True)
class LandmarkStage(Stage):
    """The starter detector's last look, on faces only: where exactly their landmarks are."""

    detector: str = ""
    """A detector file of train.tasks.closeup, whose networks are kept."""
    bend: float = 1.0
    """How far a face's landmarks go towards another's at most, as a share of the way."""
    mix: float = 0.6
    """Share of close-ups in which two portraits fade into each other."""

    def check(self, name: str) -> None:
        super().check(name)
        _require(0 <= self.bend <= 1, f"{name}.bend", "a share in [0, 1]", self.bend)
        _require(0 <= self.mix <= 1, f"{name}.mix", "a share in [0, 1]", self.mix)


@dataclass(frozen=True)
class EmbedderStage(Stage):
    """The starter identity embedder, distilled from MobileFaceNet."""

    teacher: str = ""
    """Folder with mobilefacenet_foamliu.pt."""
    virtual: int = 2500
    """People mixed from the real ones, beside them."""
    views: int = 2
    """Of each person in a batch, which holds ``batch`` people."""


@dataclass(frozen=True)
class PresenceStage(Stage):
    """Whether a crop shows a face at all (lafr_core.faces.trust), on portraits and what is none."""


@dataclass(frozen=True)
class Loss:
    """Weight of each term; 0 switches a term off. Terms that need weights are refused at the start when those are missing."""

    latent: float = 1.0
    relative: float = 0.0
    """L1 to the clean latents as a share of what it was before: mild and severe samples count alike."""
    commitment: float = 0.25
    code: float = 0.1
    """Cross-entropy of the degraded picture's codes against the clean picture's, a distance counted per channel."""
    stay: float = 0.25
    """Pull towards the input's latents, multiplied by fidelity: keeps mild faces (docs/training.md has the figures)."""
    pixel: float = 1.0
    gradient: float = 0.0
    """L1 of pixel differences: edges, without any network."""
    decibel: float = 0.0
    """Logarithm of each picture's mean squared error: its PSNR."""
    ssim: float = 0.0
    """1 - SSIM over uniform windows."""
    sharpness: float = 0.0
    """|log ratio| of edge energies, against the decoded clean latents."""
    perceptual: float = 0.0
    identity: float = 0.1
    features: float = 0.0
    """Relative L1 of the identity network's feature maps (mobilefacenet_foamliu.pt only)."""
    structure_landmarks: float = 0.0
    structure_parsing: float = 0.0
    perceptual_weights: str = ""
    """torchvision's vgg16 state dict."""
    identity_weights: str = ""
    """facexlib's recognition_arcface_ir_se50.pth, mobilefacenet_foamliu.pt, or ``starter``."""
    landmark_weights: str = ""
    """facexlib's alignment_WFLW_4HG.pth."""
    parsing_weights: str = ""
    """facexlib's parsing_parsenet.pth or parsing_bisenet.pth."""


@dataclass(frozen=True)
class Log:
    """What is written, how often and where."""

    out: str = "runs/run"
    tracker: str = "tensorboard"
    """tensorboard, wandb or none. log.csv and the plots are written in any case."""
    every: int = 10
    sample_every: int = 500
    validate_every: int = 0
    """Steps between validations on ``validation_faces`` of data.validation: validation.csv, validation.png; 0 = none."""
    validation_faces: int = 12
    best: str = "identity"
    """The checkpoint that is best by this column is kept: psnr, ssim, identity, sharpness, landmarks, perceptual, niqe."""
    niqe: str = ""
    """niqe_pris_params.npz, for the column niqe; empty = none."""
    save_best: bool = True
    """Save whenever a validation is the best so far; false = only as ``save_every`` says."""
    patience: int = 0
    """Stop after so many validations without a better one; 0 = never."""
    minutes: float = 0.0
    """Save and stop after so many minutes of this start, for a machine that is lent for a time; 0 = never. One process only."""
    clock: bool = False
    """Let the learning rate fall with those minutes instead of with the steps: it is at its end when they are over. What was
    resumed is then not the run that was interrupted.
    """
    save_every: int = 500
    keep: int = 3
    """How many checkpoints stay; the oldest go first."""
    plots: bool = True
    """Draw curves.png beside the checkpoints at every save."""
    resume: bool = True
    """Continue from the newest checkpoint in ``out``; false refuses a folder that holds one."""

    def check(self) -> None:
        _require(self.tracker in ("tensorboard", "wandb", "none"), "log.tracker", "tensorboard, wandb or none", self.tracker)
        for key in ("every", "sample_every", "save_every", "keep", "validation_faces"):
            _require(getattr(self, key) >= 1, f"log.{key}", "1 or more", getattr(self, key))
        for key in ("validate_every", "patience", "minutes"):
            _require(getattr(self, key) >= 0, f"log.{key}", "0 or more", getattr(self, key))
        known = ("psnr", "ssim", "identity", "sharpness", "landmarks", "perceptual", "niqe")
        _require(self.best in known, "log.best", f"one of {', '.join(known)}", self.best)
        _require(self.minutes > 0 or not self.clock, "log.clock", "log.minutes above 0 beside it", self.clock)
        _require(bool(self.niqe) or self.best != "niqe", "log.best", "log.niqe to be set for niqe", self.niqe)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    seed: int = 0
    data: Data = field(default_factory=Data)
    models: Models = field(default_factory=Models)
    network: Network = field(default_factory=Network)
    pairs: PairsStage = field(default_factory=PairsStage)
    vae: VaeStage = field(default_factory=VaeStage)
    thumbnail: ThumbnailStage = field(default_factory=ThumbnailStage)
    codebook: CodebookStage = field(default_factory=CodebookStage)
    adapter: AdapterStage = field(default_factory=AdapterStage)
    confidence: ConfidenceStage = field(default_factory=ConfidenceStage)
    prior: PriorStage = field(default_factory=PriorStage)
    critic: CriticStage = field(default_factory=CriticStage)
    joint: JointStage = field(default_factory=JointStage)
    decoder: DecoderStage = field(default_factory=DecoderStage)
    diffusion: DiffusionStage = field(default_factory=DiffusionStage)
    families: FamiliesStage = field(default_factory=FamiliesStage)
    detector: FinderStage = field(default_factory=FinderStage)
    closeup: CloseUpStage = field(default_factory=CloseUpStage)
    landmarks: LandmarkStage = field(default_factory=LandmarkStage)
    embedder: EmbedderStage = field(default_factory=EmbedderStage)
    presence: PresenceStage = field(default_factory=PresenceStage)
    loss: Loss = field(default_factory=Loss)
    log: Log = field(default_factory=Log)

    def check(self) -> Config:
        """Return the record, or raise SettingsError naming the first value that cannot work."""
        self.data.check()
        self.network.check()
        for name in STAGES:
            getattr(self, name).check(name)
        self.log.check()
        negative = [f.name for f in fields(self.loss) if f.type == "float" and getattr(self.loss, f.name) < 0]
        _require(not negative, f"loss.{negative[0] if negative else ''}", "0 or more", "a negative number")
        return self


STAGES = (
    *("pairs", "vae", "thumbnail", "codebook", "adapter", "confidence", "prior", "critic", "joint", "decoder"),
    *("diffusion", "families", "detector", "closeup", "landmarks", "embedder", "presence"),
)
"""The sections that describe one stage each."""


def parse(arguments: Sequence[str]) -> Config:
    """Command line -> Config. ``--config FILE`` first, then ``--section.name value`` or ``--section.name=value`` in any
    number.
    """
    values: dict[str, Any] = {}
    overrides: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise SettingsError(f"command line: expected --section.name value, got {flag!r}")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise SettingsError(f"command line: --{key} needs a value")
            text = rest.pop(0)
        if key == "config":
            values = read_yaml(Path(text))
        else:
            overrides.append((key.replace("-", "_"), text))
    for key, text in overrides:
        *sections, name = locate(key).split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = yaml.safe_load(text)
    return from_mapping(values)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SettingsError when it is missing or not a mapping."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("no file, but a folder, pipe or device")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: expected a readable YAML file ({error}); see train/configs/ for examples") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected sections such as data: and adapter:, got {type(values).__name__}")
    return values


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Nested mapping -> Config, checked. What it leaves out keeps its default. Raises SettingsError for unknown keys and
    wrong types.
    """
    return _build(Config, values, "").check()


def to_mapping(config: Config) -> dict[str, Any]:
    """The inverse of :func:`from_mapping`, complete."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def dump(config: Config) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def locate(key: str) -> str:
    """The full ``section.name`` of a command-line key. Raises SettingsError suggesting the nearest one."""
    known = _keys(Config)
    if key in known:
        return key
    short = [name for name in known if name.split(".")[-1] == key]
    if len(short) == 1:
        return short[0]
    if short:
        raise SettingsError(f"--{key}: occurs in several sections; write one of {', '.join('--' + s for s in short)}")
    raise SettingsError(f"--{key}: unknown setting; {nearest(key, [*known, *(name.split('.')[-1] for name in known)])}")


def _keys(cls: Any, prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(cls)
    out: list[str] = []
    for f in fields(cls):
        nested = dataclasses.is_dataclass(hints[f.name])
        out += _keys(hints[f.name], f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return out


def nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(dict.fromkeys(known))}"


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{prefix.rstrip('.')}: expected a section with names and values, got {values!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise SettingsError(f"{prefix}{key}: unknown setting; {nearest(str(key), names)}")
        kind = hints[key]
        arguments[key] = (
            _build(kind, value, f"{prefix}{key}.") if dataclasses.is_dataclass(kind) else _convert(kind, value, prefix + key)
        )
    return cls(**arguments)


def _convert(kind: Any, value: Any, key: str) -> Any:
    """YAML's value as the field's type; text such as 1e-4, which YAML 1.1 does not read as a number, counts as one."""
    if kind == tuple[int, ...]:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(int, item, key) for item in items)
    if kind is str and isinstance(value, (str, type(None))):
        return value or ""
    if kind is str and value is False and key.endswith(".precision"):  # YAML 1.1 reads a bare no as false
        return "no"
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number == number and (kind is float or number == int(number)):
            return kind(number)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise SettingsError(f"{key}: expected {_KINDS[kind]}, got {value!r}")


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _require(fine: bool, key: str, expected: str, got: object) -> None:
    if not fine:
        raise SettingsError(f"{key}: expected {expected}, got {got}")
