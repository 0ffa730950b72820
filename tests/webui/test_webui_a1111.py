"""The loaded checkpoint in A1111: an object of ldm's shape, with the module swapping that --medvram and --lowvram hang on
it.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn
from webui_fakes import Webui, info, photo

from lafr_core.errors import CheckpointError
from lafr_core.latent import prediction
from lafr_core.pipeline import REFERENCE_WEIGHT, restore_pixels
from lafr_webui import a1111, engine, host, loaded
from lafr_webui.settings import Request

ALPHAS = prediction.alphas_cumprod().float()


class Posterior:
    """ldm's DiagonalGaussianDistribution."""

    def __init__(self, moments):
        self.mean, self.logvar = moments.chunk(2, dim=1)

    def mode(self):
        return self.mean

    def sample(self):
        return self.mean + torch.exp(0.5 * self.logvar) * torch.randn_like(self.mean)


class FirstStage(nn.Module):
    """ldm's AutoencoderKL seen from outside: [-1, 1] pixels, raw latents."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 8, stride=8)
        self.up = nn.ConvTranspose2d(4, 3, 8, stride=8)

    def encode(self, x):
        return Posterior(self.down(x) * 5)

    def decode(self, z):
        return self.up(z / 5)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_channels = 4
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.text = nn.Linear(16, 4)

    def forward(self, x, t, context):
        return self.conv(x) * (1 + t.view(-1, 1, 1, 1) / 1000) + self.text(context.mean(1))[:, :, None, None]


class Wrapper(nn.Module):
    """ldm's DiffusionWrapper: --medvram hangs its hook on this forward."""

    def __init__(self):
        super().__init__()
        self.diffusion_model = UNet()

    def forward(self, x, t, c_concat=None, c_crossattn=None):
        return self.diffusion_model(x, t, torch.cat(c_crossattn, 1))


class SdModel(nn.Module):
    """ldm's LatentDiffusion as the webui holds it."""

    def __init__(self, parameterization="eps"):
        super().__init__()
        torch.manual_seed(6)
        self.first_stage_model, self.model = FirstStage(), Wrapper()
        self.scale_factor, self.parameterization, self.alphas_cumprod = 0.18215, parameterization, ALPHAS
        self.cond_stage_model_empty_prompt = torch.randn(1, 77, 16)
        self.eval().requires_grad_(True)  # as in the webui: its weights do require gradients

    def apply_model(self, x, t, cond):
        return self.model(x, t, **cond)

    def get_learned_conditioning(self, prompts):
        return torch.ones(len(prompts), 77, 16)

    @torch.no_grad()
    def decode_first_stage(self, z):
        return self.first_stage_model.decode(z / self.scale_factor)


@pytest.fixture
def webui(monkeypatch):
    made = Webui(monkeypatch, False)
    made.shared.sd_model = SdModel()
    yield made
    engine.CACHE.clear()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def finished(values, pixels):
    """Small crops through the parts that the request opens."""
    request = Request.from_mapping({"engine": "checkpoint", **values})
    with host.neutral(torch.device("cpu")), engine.opened(request) as opened:
        assert opened.notes == ()
        return restore_pixels(pixels, opened.models, request.restore.fidelity)


def test_encoding_is_the_scaled_mode(webui, pixels):
    model = webui.shared.sd_model
    with torch.no_grad():
        latents = a1111.A1111Vae(model).encode(pixels)
        assert torch.equal(latents, a1111.A1111Vae(model).encode(pixels))
        assert torch.allclose(latents, model.first_stage_model.encode(pixels * 2 - 1).mean * 0.18215)


def test_decoding_is_the_hosts(webui, pixels):
    model, z = webui.shared.sd_model, torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = (model.decode_first_stage(z) * 0.5 + 0.5).clamp(0, 1)
        assert torch.allclose(a1111.A1111Vae(model).decode(z), expected, atol=1e-6)


@pytest.mark.parametrize(("parameterization", "kind"), [("eps", "epsilon"), ("v", "v_prediction")])
def test_denoiser_is_hand_algebra(webui, parameterization, kind):
    model = SdModel(parameterization)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        x0 = a1111.A1111Denoiser(model)(x, 399)
        context = model.cond_stage_model_empty_prompt.expand(2, -1, -1)
        raw = model.model.diffusion_model(x, torch.tensor([399, 399]), context)
    assert torch.allclose(x0, prediction.to_sample(raw, x, float(ALPHAS[399]), kind), atol=1e-5)


def test_the_empty_prompt_of_versions_that_do_not_keep_it(webui):
    model = SdModel()
    del model.cond_stage_model_empty_prompt
    assert torch.equal(a1111.A1111Denoiser(model).context, torch.ones(1, 77, 16))


def test_half_weights_run_under_the_hosts_autocast(webui, pixels):
    model = SdModel()
    expected = a1111.A1111Vae(model).encode(pixels)
    x = torch.randn(1, 4, 8, 8)
    full = a1111.A1111Denoiser(model)(x, 399)
    model.bfloat16()
    webui.devices.dtype = webui.devices.dtype_vae = webui.devices.dtype_unet = torch.bfloat16
    webui.devices.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    with host.neutral(torch.device("cpu")):
        latents = a1111.A1111Vae(model).encode(pixels)
        decoded = a1111.A1111Vae(model).decode(latents)
        x0 = a1111.A1111Denoiser(model)(x, 399)
    assert latents.dtype == decoded.dtype == x0.dtype == torch.float32
    assert torch.allclose(latents, expected, atol=0.1) and torch.allclose(x0, full, atol=0.2)


def test_lowvram_swaps_are_honoured(webui, pixels):
    """The host replaces encode and decode on the instance and hooks the wrapper's forward: going past them meets weights on
    the CPU.
    """
    model, moved = webui.shared.sd_model, []
    stage = model.first_stage_model
    encode, decode = stage.encode, stage.decode
    stage.encode = lambda x: moved.append("vae") or encode(x)
    stage.decode = lambda z: moved.append("vae") or decode(z)
    model.model.register_forward_pre_hook(lambda module, args: moved.append("unet") or None)
    with torch.no_grad():
        vae, denoiser = a1111.A1111Vae(model), a1111.A1111Denoiser(model)
        vae.decode(denoiser(vae.encode(pixels), 399))
    assert moved == ["vae", "unet", "vae"]


def test_a_reference_photo_lends_through_the_checkpoints_vae(webui, parts):
    request = Request.from_mapping({"engine": "checkpoint"})
    with host.neutral(torch.device("cpu")), engine.opened(request, photo()) as lent:
        assert lent.notes == () and lent.references.weight == REFERENCE_WEIGHT
        assert len(lent.references.people) == 1 and isinstance(lent.models.vae, a1111.A1111Vae)


def test_extras_with_the_loaded_checkpoint(webui, parts):
    assert not loaded.is_forge()
    runner, image = webui.runner(), photo()
    pp = webui.run(image, {"enable": True, "engine": "checkpoint"}, runner)
    report = info(pp)
    assert report.status == "ok" and "starter" not in report.note, report.note
    assert pp.image.tobytes() not in (image.tobytes(), webui.run(image, {"enable": True}, runner).image.tobytes())


def changed_model(**attributes):
    model = SdModel()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def inpainting():
    model = SdModel()
    model.model.diffusion_model.in_channels = 9
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: None, "none is loaded"),
        (lambda: changed_model(is_sdxl=True, scale_factor=0.13025), "got scale 0.13025"),
        (lambda: changed_model(scale_factor=1.5305), "got scale 1.5305"),
        (inpainting, "got 9"),
    ],
)
def test_other_models_fall_back_to_the_starter_and_say_so(webui, parts, build, message):
    webui.shared.sd_model = build()
    runner = webui.runner()
    pp = webui.run(photo(), {"enable": True, "engine": "checkpoint"}, runner)
    report = info(pp)
    assert report.status == "ok" and "starter engine used" in report.note and message in report.note
    assert pp.image.tobytes() == webui.run(photo(), {"enable": True}, runner).image.tobytes()


@pytest.mark.parametrize("error", [SystemExit(1), FileNotFoundError("No checkpoints found")])
def test_a_webui_without_any_checkpoint(webui, parts, error):
    """Versions before 1.6 call exit(1) when the model is first asked for: that must not end the server."""

    class Shared(types.ModuleType):
        @property
        def sd_model(self):
            raise error

    shared = Shared("modules.shared")
    vars(shared).update({k: v for k, v in vars(webui.shared).items() if k != "sd_model"})
    sys.modules["modules.shared"] = webui.modules.shared = shared
    webui.shared = shared
    report = info(webui.run(photo(), {"enable": True, "engine": "checkpoint"}))
    assert report.status == "ok" and "cannot load one" in report.note


def test_nan_from_a_half_vae_names_the_switch(webui, pixels):
    model = webui.shared.sd_model
    model.first_stage_model.down.weight.data.fill_(float("nan"))
    with torch.no_grad(), pytest.raises(CheckpointError, match="--no-half-vae"):
        a1111.A1111Vae(model).encode(pixels)


def test_loras_of_the_last_generation_are_left_out_and_come_back(webui, monkeypatch):
    networks = types.ModuleType("networks")
    networks.loaded_networks = ["somebody's style"]
    networks.load_networks = lambda names, te, unet, dyn: networks.loaded_networks.extend(n for n in names if n == "lafr_prior")
    monkeypatch.setitem(sys.modules, "networks", networks)
    kept = networks.loaded_networks
    with loaded.checkpoint():
        assert kept == []
    assert kept == ["somebody's style"]
    with loaded.checkpoint("lafr_prior"):
        assert kept == ["lafr_prior"]
    with pytest.raises(CheckpointError, match="'missing': not found"), loaded.checkpoint("missing"):
        pass
    assert kept == ["somebody's style"] and networks.loaded_networks is kept


def test_a_lora_without_the_lora_extension(webui):
    with pytest.raises(CheckpointError, match="Lora extension is switched off"), loaded.checkpoint("lafr_prior"):
        pass
