"""Every shipped net comes out of the documented path: its config builds exactly the architecture of the shipped file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from lafr_core.faces.networks.closeup import CloseUpNet
from lafr_core.faces.networks.closeup import fold as fold_closeup
from lafr_core.faces.networks.detector import StarterDetectorNet, StarterNets
from lafr_core.faces.networks.detector import fold as fold_finder
from lafr_core.faces.networks.embedder import StarterEmbedderNet
from lafr_core.faces.networks.embedder import fold as fold_embedder
from lafr_core.faces.networks.landmarks import LandmarkNet
from lafr_core.faces.networks.landmarks import fold as fold_landmarks
from lafr_core.latent.spec import family
from lafr_core.store import checkpoint
from lafr_core.store.assets import bundled
from train import config
from train.config import DiffusionStage
from train.engine import parts
from train.tasks.closeup import CloseUpTask
from train.tasks.confidence import ConfidenceTask
from train.tasks.detector import FinderTask
from train.tasks.diffusion import new_unet
from train.tasks.embedder import EmbedderTask
from train.tasks.presence import PresenceTask
from train.tasks.vae import VaeTask

CONFIGS = Path(config.__file__).parent / "configs"
WEIGHTS = bundled("vae").parent


def conf(name: str) -> config.Config:
    return config.parse(["--config", str(CONFIGS / f"{name}.yaml")])


def same(file: str, kind: str, network: nn.Module) -> None:
    """The network's constructor arguments are the file's, and its tensors fit strictly and carry the file's values."""
    path = WEIGHTS / f"{file}.safetensors"
    stored = checkpoint.load(path, kind)
    built = {**cast(dict[str, Any], network.config)}
    default = {"deep_depth": 1} if kind == "adapter" else {}
    assert {**default, **stored.config} == {key: list(v) if isinstance(v, tuple) else v for key, v in built.items()}
    checkpoint.restore_network(network, stored, path)
    assert set(network.state_dict()) == set(stored.tensors)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("starter_adapter", "adapter"),
        ("family_sdxl", "adapter_sdxl"),
        ("family_sd3", "adapter_sd3"),
        ("family_flux", "adapter_flux"),
    ],
)
def test_adapters(name: str, file: str) -> None:
    made = conf(name)
    same(file, "adapter", parts.new_adapter(made, family(made.models.family).channels))


def maker(file: str, kind: str, otherwise: str) -> str:
    """The config that a shipped file says it was trained by, or ``otherwise`` where it names none."""
    notes = checkpoint.load(WEIGHTS / f"{file}.safetensors", kind).notes
    found = re.search(r"train/configs/(\w+)\.yaml", notes.get("training", ""))
    return found[1] if found else otherwise


def test_priors() -> None:
    same("prior", "prior", parts.new_prior(conf(maker("prior", "prior", "starter_critic")), 4))
    joint = parts.new_prior(conf("starter_joint"), 4)
    assert joint.config["widths"] == [96, 160, 256] and joint.config["attention"] and not joint.config["groups"]
    assert sum(p.numel() for p in joint.parameters()) == 9_154_372
    sharpening = parts.new_prior(conf("starter_prior"), 4)  # the third generation's, which still loads
    assert sharpening.config["widths"] == [32, 64, 96] and sharpening.config["sharpen"] == 0.5


def test_autoencoder_and_embedder() -> None:
    same("vae", "vae", cast(Any, VaeTask(conf("starter_vae")).model).network)
    same("embedder", "embedder", fold_embedder(cast(StarterEmbedderNet, EmbedderTask(conf("starter_embedder")).model)))


def test_confidence_and_presence() -> None:
    same("confidence", "confidence", cast(nn.Module, ConfidenceTask(conf("starter_confidence"), 4, None, 1.0).model))
    same("presence", "presence", PresenceTask(conf("starter_presence")).model)


def test_detector() -> None:
    finder = fold_finder(cast(StarterDetectorNet, FinderTask(conf("starter_detector")).model))
    close_up = fold_closeup(cast(CloseUpNet, CloseUpTask(conf("starter_closeup")).model))
    landmarks = fold_landmarks(LandmarkNet(norm=True))
    same("detector", "detector", StarterNets(finder.config, close_up.config, landmarks.config))


def test_the_diffusion_priors_are_small() -> None:
    """What docs/claims.md and the config say of their size."""
    pytest.importorskip("diffusers")
    for stage, millions in ((conf("diffusion_small").diffusion, 9.85), (DiffusionStage(), 19.06)):
        with torch.device("meta"):
            unet = new_unet(stage, 32)
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_the_papers_configs_keep_their_budget() -> None:
    """Adapter and LoRA together at most 7.5 M, counted on the real UNets' shapes from the configs that are run."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from diffusers import UNet2DConditionModel

    heads: dict[str, dict[str, Any]] = {
        "sd15_ffhq0.9": {"cross_attention_dim": 768, "attention_head_dim": 8},
        "sd21_ffhq0.9": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    }
    for name, sizes in heads.items():
        made = conf(name)
        adapter = sum(p.numel() for p in parts.new_adapter(made, 4).parameters())
        with torch.device("meta"):
            unet = cast(nn.Module, UNet2DConditionModel(sample_size=64, **sizes))
            parts.add_lora(unet, made.prior)
        lora = sum(p.numel() for p in unet.parameters() if p.requires_grad)
        assert 5e6 < adapter + lora <= 7.5e6, f"{name}: {adapter + lora}"
        with torch.device("meta"):
            unet = cast(nn.Module, UNet2DConditionModel(sample_size=64, **sizes))
            parts.add_lora(unet, replace(made.prior, lora_more=True))
        assert sum(p.numel() for p in unet.parameters() if p.requires_grad) > 1.2 * lora
