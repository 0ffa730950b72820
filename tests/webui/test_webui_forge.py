"""The loaded checkpoint in Forge, through Forge's real backend on the CPU."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from webui_fakes import FORGE_ROOT, Webui, info, photo

from lafr_core.errors import CheckpointError
from lafr_core.latent import prediction
from lafr_core.pipeline import restore_pixels
from lafr_webui import engine, forge, host, loaded
from lafr_webui.settings import Request

pytestmark = pytest.mark.skipif(not FORGE_ROOT, reason="FORGE_ROOT (a stable-diffusion-webui-forge checkout) is not set")
if FORGE_ROOT:
    import forge_fakes


@pytest.fixture(scope="module")
def model():
    return forge_fakes.sd_model()


@pytest.fixture
def forge_webui(monkeypatch):
    """A Forge whose checkpoint is not loaded yet."""
    made = Webui(monkeypatch, True)
    sd_models = forge_fakes.SdModels(forge_fakes.sd_model)
    made._put("sd_models", model_data=sd_models.model_data, forge_model_reload=sd_models.forge_model_reload)
    main_entry = types.ModuleType("modules_forge.main_entry")
    main_entry.refresh_model_loading_parameters = sd_models.refresh
    package = types.ModuleType("modules_forge")
    package.main_entry = main_entry
    monkeypatch.setitem(sys.modules, "modules_forge", package)
    monkeypatch.setitem(sys.modules, "modules_forge.main_entry", main_entry)
    made.models = sd_models
    return made


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_encoding_is_the_mode_where_the_host_samples(model, pixels):
    vae = forge.ForgeVae(model.forge_objects.vae)
    first = vae.encode(pixels)
    assert torch.equal(first, vae.encode(pixels)) and first.shape == (2, 4, 8, 8)
    with torch.inference_mode():
        moments = model.forge_objects.vae.first_stage_model
        expected = moments.quant_conv(moments.encoder(pixels * 2 - 1))[:, :4] * 0.18215
        host = [model.forge_objects.vae.encode(pixels.movedim(1, -1)) for _ in range(2)]
    assert torch.allclose(first, expected, atol=1e-5)
    assert not torch.equal(*host), "the host's own option was changed"
    assert "model_vae_regulation" not in model.forge_objects.vae.patcher.model_options


def test_decoding_is_the_hosts(model, pixels):
    vae = forge.ForgeVae(model.forge_objects.vae)
    latents = vae.encode(pixels)
    with torch.inference_mode():
        expected = model.forge_objects.vae.decode(latents / 0.18215).movedim(-1, 1)
    decoded = vae.decode(latents)
    assert torch.allclose(decoded, expected, atol=1e-5) and not decoded.is_inference() and not latents.is_inference()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("timestep", [1, 399, 998])
def test_denoiser_is_the_raw_unet_and_hand_algebra(kind, timestep):
    model = forge_fakes.sd_model(kind)
    unet, context = model.forge_objects.unet, model.get_learned_conditioning([""])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    x0 = forge.ForgeDenoiser(unet.clone(), context)(x, timestep)
    with torch.inference_mode():
        raw = unet.model.diffusion_model(x, torch.full((2,), float(timestep)), context=context.expand(2, -1, -1)).clone()
    expected = prediction.to_sample(raw, x, float(prediction.alphas_cumprod()[timestep]), kind)
    assert torch.allclose(x0, expected, atol=2e-4, rtol=1e-4), (x0 - expected).abs().max()
    assert (x0 - x).abs().mean() > 1e-3 and not x0.is_inference()


def test_alpha_is_sds(model):
    denoiser = forge.ForgeDenoiser(model.forge_objects.unet, torch.zeros(1, 77, 16))
    for timestep in (1, 399, 998):
        assert denoiser.alpha(timestep) == pytest.approx(float(prediction.alphas_cumprod()[timestep]), rel=1e-4)


def test_the_checkpoint_is_loaded_when_only_the_placeholder_is_there(forge_webui):
    assert loaded.is_forge() and type(forge_webui.models.model_data.sd_model).__name__ == "FakeInitialModel"
    with loaded.checkpoint() as first:
        assert isinstance(first.vae, forge.ForgeVae)
    with loaded.checkpoint():
        pass
    assert forge_webui.models.loads == 1
    forge_webui.models.model_data.forge_loading_parameters = {"checkpoint_info": "another one, chosen since"}
    with loaded.checkpoint():
        pass
    assert forge_webui.models.loads == 2


@pytest.mark.parametrize("values", [{}, {"steps": 2, "denoise": 0.5}])
def test_extras_with_the_loaded_checkpoint(forge_webui, parts, values):
    image = photo()
    runner = forge_webui.runner()
    starter = forge_webui.run(image, {"enable": True}, runner)
    pp = forge_webui.run(image, {"enable": True, "engine": "checkpoint", **values}, runner)
    report = info(pp)
    assert (report.status, report.found, report.request.engine.engine) == ("ok", 1, "checkpoint"), (
        report.note,
        forge_webui.shown,
    )
    assert "starter engine used" not in report.note
    assert pp.image.tobytes() not in (image.tobytes(), starter.image.tobytes())


def finished(values, pixels):
    """Small crops through the parts that the request opens, as the pipeline would send 512 ones."""
    request = Request.from_mapping({"engine": "checkpoint", **values})
    with host.neutral(torch.device("cpu")), engine.opened(request) as opened:
        assert opened.notes == ()
        return restore_pixels(pixels, opened.models, request.restore.fidelity)


@pytest.mark.parametrize(
    ("base", "values"),
    [
        ({}, {"timestep": 900}),
        ({}, {"steps": 4}),
        ({"steps": 2}, {"denoise": 0.9}),
        ({"steps": 2}, {"seed": 5}),
    ],
)
def test_knobs_of_the_checkpoint_change_the_result(forge_webui, parts, pixels, base, values):
    one = finished(base, pixels)
    assert torch.equal(one, finished(base, pixels)), "not repeatable"
    assert not torch.allclose(one, finished(base | values, pixels), atol=1e-3)


def test_inside_generation(forge_webui, parts, pixels):
    """As part of txt2img the same happens under inference mode."""
    outside = finished({"steps": 2}, pixels)
    with torch.inference_mode():
        inside = finished({"steps": 2}, pixels)
    assert torch.equal(inside, outside) and not inside.is_inference()


def test_no_checkpoint_falls_back_to_the_starter(forge_webui, parts):
    forge_webui.models.available = False
    runner = forge_webui.runner()
    pp = forge_webui.run(photo(), {"enable": True, "engine": "checkpoint"}, runner)
    report = info(pp)
    assert report.status == "ok" and "starter engine used" in report.note and "You do not have any model" in report.note
    assert pp.image.tobytes() == forge_webui.run(photo(), {"enable": True}, runner).image.tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latent_channels": 16}, "16 channels"),
        ({"scale": 0.13025}, "scale 0.13025"),
        ({"in_channels": 9}, "got 9"),
    ],
)
def test_other_families_are_refused_by_name(wrong, message):
    with pytest.raises(CheckpointError, match=message):
        forge.check(forge_fakes.sd_model(**wrong))


def test_the_last_generations_lora_is_left_out(model):
    patched = model.forge_objects.unet.clone()
    patched.lora_patches[("someone.safetensors", 1.0, 1.0, False)] = {}
    model.forge_objects.unet = patched
    assert not forge.pristine(model).unet.lora_patches


def test_a_lora_of_the_webui_is_applied_and_taken_off(forge_webui, monkeypatch, tmp_path):
    from backend.patcher.lora import load_lora, model_lora_keys_unet
    from safetensors.torch import save_file

    sd = forge_fakes.sd_model()
    keys = model_lora_keys_unet(sd.forge_objects.unet.model)
    name = next(key for key, target in keys.items() if key.startswith("lora_unet_") and "to_q" in key)
    width = dict(sd.forge_objects.unet.model.named_parameters())[keys[name]].shape
    generator = torch.Generator().manual_seed(8)
    path = tmp_path / "lafr_prior.safetensors"
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(2, width[1], generator=generator),
            f"{name}.lora_up.weight": torch.randn(width[0], 2, generator=generator),
            f"{name}.alpha": torch.tensor(2.0),
        },
        path,
    )

    def load_lora_for_models(unet, clip, tensors, strength, clip_strength, filename, online_mode):
        patches, _ = load_lora(tensors, model_lora_keys_unet(unet.model))
        if not patches:
            return unet, clip
        new = unet.clone()
        new.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=online_mode)
        return new, clip

    networks = types.ModuleType("networks")
    networks.available_network_aliases = {"lafr_prior": types.SimpleNamespace(filename=str(path))}
    networks.list_available_networks = lambda: None
    networks.load_lora_for_models = load_lora_for_models
    monkeypatch.setitem(sys.modules, "networks", networks)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = sd.get_learned_conditioning([""])

    def evaluate(lora):
        return forge.ForgeDenoiser(forge.with_lora(sd.forge_objects.unet, lora), context)(x, 399)

    before = evaluate("")
    assert not torch.allclose(evaluate("lafr_prior"), before, atol=1e-5)
    assert torch.equal(evaluate(""), before)
    with pytest.raises(CheckpointError, match="'missing': not found"):
        forge.with_lora(sd.forge_objects.unet, "missing")
    save_file({"lora_unet_nothing_like_it.lora_down.weight": torch.ones(1, 1)}, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        forge.with_lora(sd.forge_objects.unet, "lafr_prior")
