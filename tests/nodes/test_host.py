"""The nodes in ComfyUI's own process, on a tiny real MODEL: all of it under the server's inference mode, loading included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hostenv
import pytest
import torch
from torch import Tensor

needs_taesd = pytest.mark.skipif(
    not (hostenv.SHARED_WEIGHTS / "taesd_encoder.safetensors").is_file(), reason="TAESD weights are not here (LAFR_SHARED)"
)
SAMPLING = {
    "mode": "one-step (forced)",
    "timestep": 399, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
    "seed": 0, "identity_weight": 0.0, "start_percent": 0.0, "end_percent": 1.0, "batch_size": 4,
}  # fmt: skip
PASTING = {"strength": 1.0, "mask": "oval", "feather": 0.1, "color": 1.0, "grain": 0.0}


@pytest.fixture(autouse=True)
def like_the_server(host: hostenv.Host) -> Iterator[None]:
    import comfy.model_management as mm

    with torch.inference_mode():
        yield
    mm.interrupt_current_processing(False)


@pytest.fixture(scope="module")
def starter(host: hostenv.Host) -> tuple[Any, Any, Any]:
    """MODEL, VAE, LAFR_ADAPTER of the bundled pack."""
    with torch.inference_mode():
        return host.nodes.LoadStarter.execute().result


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """IMAGE: the astronaut, a real face, 1 x 256 x 256 (public domain, from scikit-image)."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.astronaut()).float().div(255)[None, :256, 96:352]
    return image.contiguous()


@pytest.fixture(scope="module")
def found(host: hostenv.Host, photo: Tensor) -> Any:
    """The LAFR_FACES of a batch of three photos: two faces in the first and the last, none in the second."""
    face_type = host.core("types").Face
    # The five landmarks of that picture, to the pixel.
    marks = ((110.0, 108.0), (148.0, 107.0), (131.0, 130.0), (114.0, 146.0), (148.0, 145.0))
    face = face_type((90.0, 60.0, 170.0, 175.0), marks, 0.9)
    place, crop_faces = host.core("faces.crop").place, host.core("faces.crop").crop_faces
    faces = tuple(place(replace(face, image_index=row)) for row in (0, 2))
    images = torch.cat([photo, torch.full_like(photo, 0.5), photo.flip(1)[:, :, :] * 0.8]).movedim(-1, 1)
    images[2] = images[0] * 0.8
    return host.module("faces").FaceSet(faces, crop_faces(images, faces), 3, (256, 256))


def latents(rows: int = 2, side: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {"samples": torch.randn(rows, 4, side, side, generator=generator) * 4.0}


def sample(host: hostenv.Host, model: Any, vae: Any, found: Any, latent: dict[str, Any] | None = None, **changes: Any) -> Any:
    context = model.model.model_config.unet_config["context_dim"]
    text = [[torch.randn(1, 77, context, generator=torch.Generator().manual_seed(1)), {}]]
    given = {"positive": text, "negative": [[torch.zeros(1, 77, context), {}]], **SAMPLING, **changes}
    return host.nodes.IdentitySampler.execute(model=model, latent=latent or latents(), vae=vae, faces=found, **given).result


# One step


@pytest.mark.parametrize("v_prediction", [False, True])
def test_one_step_is_the_librarys_one_step(host: hostenv.Host, starter: Any, found: Any, v_prediction: bool) -> None:
    """The host samples in sigma form; the UNet must see the latent itself, as it does in training."""
    prediction = host.core("latent.prediction")
    model = hostenv.tiny_model(v_prediction=v_prediction)
    latent = latents()
    restored, *_ = sample(host, model, starter[1], found, latent)
    text = torch.randn(1, 77, 16, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1)
    unet = model.model.diffusion_model
    expected = prediction.one_step(
        lambda x: unet(x, torch.full((len(x),), 399), context=text),
        latent["samples"] * 0.18215,
        399,
        "v_prediction" if v_prediction else "epsilon",
    )
    difference = (restored["samples"] * 0.18215 - expected).abs().max()
    assert difference < 1e-4 * expected.abs().max()
    assert restored["samples"].dtype == torch.float32 and restored["samples"].device.type == "cpu"


def test_the_starter_model_is_the_librarys_prior(host: hostenv.Host, starter: Any, found: Any) -> None:
    latent = latents(side=16)
    restored, *_ = sample(host, starter[0], starter[1], found, latent)
    prior = host.core("latent.prior").open_prior()
    with torch.no_grad():
        expected = prior(latent["samples"] * 0.18215)
    assert torch.allclose(restored["samples"] * 0.18215, expected, atol=1e-4)


@pytest.mark.parametrize("timestep", [0, 999])
def test_one_step_at_both_ends_of_the_schedule(host: hostenv.Host, starter: Any, found: Any, timestep: int) -> None:
    restored, *_ = sample(host, hostenv.tiny_model(), starter[1], found, timestep=timestep)
    assert restored["samples"].isfinite().all()


def test_the_models_own_lora_counts(host: hostenv.Host, starter: Any, found: Any) -> None:
    import comfy.sd

    model = hostenv.tiny_model()
    generator = torch.Generator().manual_seed(3)
    name = "diffusion_model.input_blocks.0.0"
    lora = {
        f"{name}.lora_down.weight": torch.randn(4, 4, 3, 3, generator=generator),
        f"{name}.lora_up.weight": torch.randn(32, 4, 1, 1, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }
    patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
    plain = sample(host, model, starter[1], found)[0]["samples"]
    assert not torch.allclose(sample(host, patched, starter[1], found)[0]["samples"], plain, atol=1e-3)
    assert torch.equal(sample(host, model, starter[1], found)[0]["samples"], plain)


def test_a_model_without_our_lora_takes_few_steps_and_says_so(host: hostenv.Host, starter: Any, found: Any) -> None:
    import comfy.sd

    model = hostenv.tiny_model()
    plain, _, report = sample(host, model, starter[1], found, mode="one-step")
    few = sample(host, model, starter[1], found, mode="few-step")[0]["samples"]
    assert torch.equal(plain["samples"], few)
    assert report == "MODEL: no LAFR LoRA on it, so 3 steps at denoise 0.50 instead of one step"
    generator = torch.Generator().manual_seed(3)
    ends = {"diffusion_model.input_blocks.0.0": (32, 4), "diffusion_model.out.2": (4, 32)}
    lora = {f"{name}.alpha": torch.tensor(4.0) for name in ends}
    for name, (out, into) in ends.items():
        lora[f"{name}.lora_down.weight"] = torch.randn(4, into, 3, 3, generator=generator) * 0.01
        lora[f"{name}.lora_up.weight"] = torch.randn(out, 4, 1, 1, generator=generator) * 0.01
    ours = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
    one, _, report = sample(host, ours, starter[1], found, mode="one-step")
    assert report == "one step"
    assert torch.equal(one["samples"], sample(host, ours, starter[1], found)[0]["samples"])


def test_a_style_lora_is_not_taken_for_ours(host: hostenv.Host) -> None:
    import comfy.sd

    has_lafr_lora, model = host.module("lora").has_lafr_lora, hostenv.tiny_model()
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    lora = {
        f"{name}.lora_down.weight": torch.ones(4, 64),
        f"{name}.lora_up.weight": torch.ones(64, 4),
        f"{name}.alpha": torch.tensor(4.0),
    }
    styled = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
    assert styled.patches and not has_lafr_lora(styled) and not has_lafr_lora(model)


def test_a_noise_mask_keeps_what_it_masks(host: hostenv.Host, starter: Any, found: Any) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1.0
    latent = {**latents(), "noise_mask": mask}
    restored = sample(host, hostenv.tiny_model(), starter[1], found, latent)[0]["samples"]
    assert torch.allclose(restored[..., 4:], latent["samples"][..., 4:], atol=1e-5)
    assert not torch.allclose(restored[..., :4], latent["samples"][..., :4], atol=1e-2)


# The starter in the host's shape


def test_stock_nodes_take_the_starter_vae(host: hostenv.Host, starter: Any, photo: Tensor) -> None:
    import nodes

    vae = starter[1]
    (latent,) = nodes.VAEEncode().encode(vae, photo)
    (image,) = nodes.VAEDecode().decode(vae, latent)
    library = host.core("latent.vae").open_vae()
    with torch.no_grad():
        expected = library.encode(photo.movedim(-1, 1))
        decoded = library.decode(expected).movedim(1, -1)
    assert torch.allclose(latent["samples"] * 0.18215, expected, atol=1e-4)
    assert image.shape == photo.shape and torch.allclose(image, decoded, atol=1e-4)


def test_a_stock_sampler_is_told_what_the_starter_model_is(host: hostenv.Host, starter: Any) -> None:
    import nodes

    text = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(Exception, match="restores in one step and cannot be sampled in several"):
        nodes.common_ksampler(starter[0], 0, 2, 1.0, "euler", "normal", text, text, latents(), denoise=0.5)


def test_few_steps_with_the_starter_model_are_refused(host: hostenv.Host, starter: Any, found: Any) -> None:
    with pytest.raises(host.core("errors").InputError, match="Identity-Guided Sampler in one-step mode"):
        sample(host, starter[0], starter[1], found, mode="few-step")


@needs_taesd
def test_vaes_of_other_families_are_told_apart(host: hostenv.Host) -> None:
    check, errors = host.module("host").check_vae, host.core("errors")
    check(hostenv.taesd())
    xl = hostenv.taesd("taesdxl", scale=0.13025)
    with pytest.raises(
        errors.InputError, match=r"expected an SD 1\.x/2\.x VAE, got one of another latent space \(an SDXL one\?\)"
    ):
        check(xl)
    with pytest.raises(errors.InputError, match="got 16 channels"):
        check(hostenv.taesd("taesd3", scale=1.5305, shift=0.0609))
    family = host.core("latent.spec").family
    check(xl, family("sdxl"))
    with pytest.raises(
        errors.InputError, match=r"expected an SDXL VAE, got one of another latent space \(an SD 1\.x/2\.x one\?\)"
    ):
        check(hostenv.taesd(), family("sdxl"))
    flux = hostenv.taesd("taef1", scale=0.3611, shift=0.1159)
    check(flux, family("flux"))
    with pytest.raises(errors.InputError, match=r"expected an SD3 VAE, got one of another latent space \(a FLUX\.1 one\?\)"):
        check(flux, family("sd3"))


@needs_taesd
@pytest.mark.parametrize(("name", "kind"), [("sdxl", "taesdxl"), ("sd3", "taesd3"), ("flux", "taef1")])
def test_adapters_of_other_families(host: hostenv.Host, found: Any, name: str, kind: str) -> None:
    """Aligned in the VAE's own raw latents, a whole restoration without the prior, and nothing of SD's beside it."""
    (adapter,) = host.module("load").LoadAdapter.execute(f"{name} (bundled)").args
    spec, errors, restore = host.core("latent.spec").family(name), host.core("errors"), host.module("restore")
    assert adapter.spec == spec
    vae = hostenv.taesd(kind, scale=spec.scale, shift=spec.shift)
    crops = found.crops[:1, :, :256, :256].movedim(1, -1)
    aligned, before, _ = host.module("align").AlignLatent.execute(vae, adapter, 0.75, 1, 0.5, crops=crops).args
    assert aligned["samples"].shape == before["samples"].shape == (1, spec.channels, 32, 32)
    scaled = host.core("latent.vae").open_tiny(hostenv.SHARED_WEIGHTS, name).encode(found.crops[:1, :, :256, :256])
    assert torch.allclose(spec.to_scaled(before["samples"]), scaled, atol=1e-3)
    settings = host.core("settings").RestoreSettings()
    parts = restore.open_models(settings, 399, None, vae, adapter)
    assert parts.prior is None and parts.vae.spec == parts.aligner.spec == spec
    with pytest.raises(errors.InputError, match=f"it is for {name} latents, the starter's VAE and every MODEL"):
        restore.open_models(settings, 399, None, None, adapter)
    with pytest.raises(errors.InputError, match=f"it is for {name} latents, the starter's VAE and every MODEL"):
        restore.open_models(settings, 399, hostenv.tiny_model(), vae, adapter)
    with pytest.raises(errors.InputError, match=r"another latent space|got 4 channels"):
        restore.open_models(settings, 399, None, hostenv.taesd(), adapter)


def test_models_of_other_families_are_told_apart(host: hostenv.Host, starter: Any, found: Any) -> None:
    import comfy.latent_formats

    model = hostenv.tiny_model()
    model.add_object_patch("latent_format", comfy.latent_formats.SDXL())
    with pytest.raises(host.core("errors").InputError, match=r"expected an SD 1\.x/2\.x checkpoint, got one for SDXL latents"):
        sample(host, model, starter[1], found)


# Guidance


def likeness(host: hostenv.Host, vae: Any, found: Any, restored: dict[str, Tensor]) -> Tensor:
    guidance = host.module("guidance")
    reference = guidance.reference_vectors(found, None)
    return torch.tensor(host.module("sample").identities(restored["samples"], vae, reference))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_guidance_raises_the_likeness(host: hostenv.Host, starter: Any, found: Any, sampler: str) -> None:
    model = hostenv.tiny_model()
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    options = {key: value for key, value in model.model_options.items()}
    few = {"mode": "few-step", "sampler_name": sampler}
    latent = latents(side=16)
    plain = sample(host, model, starter[1], found, latent, **few)
    guided = sample(host, model, starter[1], found, latent, identity_weight=2.0, **few)
    assert (torch.tensor(guided[1]) > torch.tensor(plain[1])).all(), (plain[1], guided[1])
    assert torch.allclose(likeness(host, starter[1], found, guided[0]), torch.tensor(guided[1]), atol=1e-4)
    assert model.model_options == options and not model.additional_models
    assert all(torch.equal(p, before[name]) for name, p in model.model.named_parameters())


def test_guidance_weight_zero_is_bit_identical(host: hostenv.Host, starter: Any, found: Any) -> None:
    import nodes

    model, latent = hostenv.tiny_model(), latents()
    text = [[torch.zeros(1, 77, 16), {}]]
    noise_free = sample(
        host, model, starter[1], found, latent, mode="few-step", identity_weight=0.0, cfg=1.0, positive=text, negative=text
    )[0]
    (stock,) = nodes.common_ksampler(model, 0, 3, 1.0, "euler", "normal", text, text, latent, denoise=0.5)
    assert torch.equal(noise_free["samples"], stock["samples"])
    patched = host.nodes.IdentityGuidance.execute(model, starter[1], found, 0.0, 0.0, 1.0).result[0]
    assert patched is model


def test_the_patch_serves_a_stock_sampler(host: hostenv.Host, starter: Any, found: Any) -> None:
    import nodes

    model, latent = hostenv.tiny_model(), latents(side=16)
    text = [[torch.zeros(1, 77, 16), {}]]
    patched = host.nodes.IdentityGuidance.execute(model, starter[1], found, 2.0, 0.0, 1.0).result[0].clone()
    outcomes = []
    for one in (model, patched):
        (out,) = nodes.common_ksampler(one, 0, 3, 1.0, "dpmpp_2m", "normal", text, text, latent, denoise=0.5)
        outcomes.append(likeness(host, starter[1], found, out))
    assert (outcomes[1] > outcomes[0]).all(), outcomes


def test_guidance_in_one_step_works_with_the_starter_model(host: hostenv.Host, starter: Any, found: Any) -> None:
    latent = latents(side=16)
    plain = sample(host, starter[0], starter[1], found, latent)
    guided = sample(host, starter[0], starter[1], found, latent, identity_weight=2.0)
    assert (torch.tensor(guided[1]) > torch.tensor(plain[1])).all()


@needs_taesd
def test_gradients_pass_a_host_vae_loaded_in_inference_mode(host: hostenv.Host, found: Any) -> None:
    vae = hostenv.taesd()
    assert next(vae.first_stage_model.parameters()).is_inference()
    plain = sample(host, hostenv.tiny_model(), vae, found, mode="few-step", steps=2)
    guided = sample(host, hostenv.tiny_model(), vae, found, mode="few-step", steps=2, identity_weight=2.0)
    assert not torch.equal(plain[0]["samples"], guided[0]["samples"])


def test_a_window_without_steps_does_not_guide(host: hostenv.Host, starter: Any, found: Any) -> None:
    model, few = hostenv.tiny_model(), {"mode": "few-step", "identity_weight": 2.0}
    plain = sample(host, model, starter[1], found, mode="few-step")[0]["samples"]
    whole = sample(host, model, starter[1], found, **few)[0]["samples"]
    outside = sample(host, model, starter[1], found, end_percent=0.1, **few)[0]["samples"]  # denoise 0.5 starts later
    late = sample(host, model, starter[1], found, start_percent=0.8, **few)[0]["samples"]
    assert torch.equal(outside, plain)
    assert not torch.equal(late, plain) and not torch.equal(late, whole)


# Every widget does something, and only that


@pytest.mark.parametrize(
    "change",
    [
        {"timestep": 200}, {"mode": "few-step"}, {"cfg": 3.0}, {"identity_weight": 1.0},
        {"mode": "few-step", "steps": 5}, {"mode": "few-step", "sampler_name": "heun"},
        {"mode": "few-step", "scheduler": "karras"}, {"mode": "few-step", "denoise": 0.3},
        {"mode": "few-step", "seed": 1}, {"mode": "few-step", "cfg": 3.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_sampler_widget_changes_the_result(host: hostenv.Host, starter: Any, found: Any, change: dict[str, Any]) -> None:
    model = hostenv.tiny_model()
    base = {"mode": change["mode"]} if len(change) > 1 else {}
    before = sample(host, model, starter[1], found, **base)[0]["samples"]
    after = sample(host, model, starter[1], found, **change)[0]["samples"]
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["one-step (forced)", "few-step"])
def test_faces_at_a_time_changes_nothing(host: hostenv.Host, starter: Any, found: Any, mode: str) -> None:
    model = hostenv.tiny_model()
    together = sample(host, model, starter[1], found, mode=mode, identity_weight=1.0)
    apart = sample(host, model, starter[1], found, mode=mode, identity_weight=1.0, batch_size=1)
    plain = sample(host, model, starter[1], found, mode=mode, identity_weight=0.0)
    # A random UNet's latents saturate the decoder, so rounding shows in guidance's direction: held against its move.
    moved = (together[0]["samples"] - plain[0]["samples"]).abs().max()
    assert moved > 0.05 and (together[0]["samples"] - apart[0]["samples"]).abs().max() < 0.02 * moved
    assert together[1] == pytest.approx(apart[1], abs=1e-3)


def test_references_replace_the_identity(host: hostenv.Host, starter: Any, found: Any, photo: Tensor) -> None:
    model = hostenv.tiny_model()
    faces = host.module("faces")
    seen: list[int] = []

    def reference(photos: Tensor) -> Tensor:
        seen.append(len(photos))
        return found.crops[:1].flip(-2)  # somebody else, to the embedder

    original, host.module("guidance").reference_crops = host.module("guidance").reference_crops, reference
    try:
        few = {"mode": "few-step", "identity_weight": 1.0}
        own = sample(host, model, starter[1], found, **few)[0]["samples"]
        other = sample(host, model, starter[1], found, references=photo.repeat(2, 1, 1, 1), **few)[0]["samples"]
    finally:
        host.module("guidance").reference_crops = original
    assert seen == [2] and not torch.equal(own, other)
    assert faces.reference_crops is original


def test_empty_text_prefers_the_stored_embedding(host: hostenv.Host) -> None:
    from safetensors.torch import save_file

    model, empty_text = hostenv.tiny_model(), host.module("sample").empty_text
    assert empty_text(model)[0][0].shape == (1, 77, 16) and not empty_text(model)[0][0].any()
    folder = host.base / "models" / "lafr"
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "mine.empty_prompt.safetensors"
    save_file({"context": torch.full((1, 77, 24), 9.0)}, str(folder / "a.empty_prompt.safetensors"))  # another width
    save_file({"context": torch.full((1, 77, 16), 0.5)}, str(stored))
    try:
        assert torch.equal(empty_text(model)[0][0], torch.full((1, 77, 16), 0.5))
    finally:
        for file in folder.iterdir():
            file.unlink()


# Align and paste


def test_align_gives_raw_latents_and_fidelity_matters(host: hostenv.Host, starter: Any, photo: Tensor) -> None:
    crops = photo[:, :128, :128]
    loose = host.nodes.AlignLatent.execute(starter[1], starter[2], 0.0, 4, 0.5, crops=crops).result
    close = host.nodes.AlignLatent.execute(starter[1], starter[2], 1.0, 4, 0.5, crops=crops).result
    assert loose[0]["samples"].shape == (1, 4, 16, 16) and loose[2].shape == (1, 128, 128)
    assert loose[2].min() >= 0 and loose[2].max() <= 1
    assert torch.equal(loose[1]["samples"], close[1]["samples"])
    assert torch.allclose(loose[1]["samples"], starter[1].encode(crops), atol=1e-4)
    assert not torch.allclose(loose[0]["samples"], close[0]["samples"], atol=1e-3)


def test_references_lend_to_aligned_latents(host: hostenv.Host, starter: Any, found: Any, photo: Tensor) -> None:
    """Before any sampler: the few-step one and the host's own start from what the person's photos lend."""
    errors, align = host.core("errors"), host.nodes.AlignLatent.execute
    plain = align(starter[1], starter[2], 0.75, 4, 0.5, faces=found).result
    crops = found.crops.movedim(1, -1)
    for reference, weight, changed in ((None, 1.0, False), (photo.flip(2), 0.0, False), (photo.flip(2), 1.0, True)):
        lent = align(starter[1], starter[2], 0.75, 4, weight, crops=crops, references=reference).result
        assert lent[0]["samples"].shape == plain[0]["samples"].shape
        assert torch.allclose(lent[0]["samples"], plain[0]["samples"], atol=1e-4) is not changed
        assert torch.equal(lent[1]["samples"], plain[1]["samples"]) and torch.equal(lent[2], plain[2])
    with pytest.raises(errors.InputError, match=r"references: expected 512x512 crops, got \(128, 128\)"):
        align(starter[1], starter[2], 0.75, 4, 0.5, crops=photo[:, :128, :128], references=photo)
    with pytest.raises(errors.InputError, match="reference: expected a face in at least one of 1"):
        align(starter[1], starter[2], 0.75, 4, 0.5, faces=found, references=torch.full_like(photo, 0.5))


def test_align_names_what_is_missing(host: hostenv.Host, starter: Any, photo: Tensor) -> None:
    errors = host.core("errors")
    with pytest.raises(errors.InputError, match="expected faces or crops, got neither"):
        host.nodes.AlignLatent.execute(starter[1], starter[2], 0.5, 4, 0.5)
    with pytest.raises(errors.InputError, match="multiples of 32"):
        host.nodes.AlignLatent.execute(starter[1], starter[2], 0.5, 4, 0.5, crops=photo[:, :100])


def test_paste_keeps_count_alpha_and_untouched_pixels(host: hostenv.Host, found: Any, photo: Tensor) -> None:
    batch = torch.cat([photo.repeat(3, 1, 1, 1), torch.full((3, 256, 256, 1), 0.25)], dim=-1)
    restored = torch.ones(2, 512, 512, 3)
    image, mask = host.nodes.FacePaste.execute(batch, found, restored, **PASTING).result
    assert image.shape == batch.shape and mask.shape == (3, 256, 256)
    assert torch.equal(image[..., 3], batch[..., 3])
    assert mask[0].max() > 0.99 and mask[1].max() == 0 and mask[2].max() > 0.99
    assert torch.equal(image[1], batch[1])
    assert torch.equal(image[mask == 0], batch[mask == 0])
    assert not torch.equal(image[0], batch[0])


@pytest.mark.parametrize(
    "change", [{"strength": 0.5}, {"mask": "square"}, {"feather": 0.3}, {"color": 0.0}, {"grain": 1.0}], ids=str
)
def test_every_paste_widget_changes_the_result(host: hostenv.Host, found: Any, photo: Tensor, change: dict[str, Any]) -> None:
    batch = photo.repeat(3, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    restored = (found.crops * 0.7 + 0.2 * torch.rand(1, 3, 1, 1, generator=generator)).movedim(1, -1)
    before = host.nodes.FacePaste.execute(batch, found, restored, **PASTING).result[0]
    after = host.nodes.FacePaste.execute(batch, found, restored, **{**PASTING, **change}).result[0]
    assert (before - after).abs().max() > 1e-3


def test_mistaken_wiring_is_named(host: hostenv.Host, starter: Any, found: Any, photo: Tensor) -> None:
    errors = host.core("errors")
    with pytest.raises(errors.InputError, match="expected the 3 photos of 256x256 the faces were found in, got 1 of 256x256"):
        host.nodes.FacePaste.execute(photo, found, torch.ones(2, 512, 512, 3), **PASTING)
    with pytest.raises(errors.InputError, match=r"restored: expected one row a face \(2\), got 1"):
        host.nodes.FacePaste.execute(photo.repeat(3, 1, 1, 1), found, torch.ones(1, 512, 512, 3), **PASTING)
    with pytest.raises(errors.InputError, match=r"latent: expected one row a face \(2\), got 3"):
        sample(host, hostenv.tiny_model(), starter[1], found, latents(rows=3))
    with pytest.raises(errors.InputError, match="LATENT: expected"):
        sample(host, hostenv.tiny_model(), starter[1], found, {"samples": torch.zeros(2, 16, 8, 8)})


# Nobody there


def test_no_face_passes_through_every_node(host: hostenv.Host, starter: Any) -> None:
    batch = torch.linspace(0, 1, 2 * 96 * 80 * 3).reshape(2, 96, 80, 3)
    detection = {
        name: default
        for name, (_, default) in host.core("settings").options().items()
        if name in host.module("faces").DETECTION
    }
    found, crops, mask, preview, count, boxes, report = host.nodes.DetectFaces.execute(batch, **detection).result
    assert count == 0 and len(found) == 0 and boxes == [[], []]
    assert report == "photo 0: 0 faces\nphoto 1: 0 faces"
    assert crops.shape == (1, 512, 512, 3) and mask.shape == (2, 96, 80) and not mask.any()
    assert torch.equal(preview, batch)
    aligned, unaligned, confidence = host.nodes.AlignLatent.execute(starter[1], starter[2], 0.5, 4, 0.5, faces=found).result
    assert aligned["samples"].shape == unaligned["samples"].shape == (1, 4, 64, 64) and confidence.shape == (1, 512, 512)
    latent, identity, _ = sample(host, hostenv.tiny_model(), starter[1], found, aligned, mode="few-step", identity_weight=1.0)
    assert latent is aligned and identity == [0.0]
    model = hostenv.tiny_model()
    assert host.nodes.IdentityGuidance.execute(model, starter[1], found, 1.0, 0.0, 1.0).result[0] is model
    image, changed = host.nodes.FacePaste.execute(batch, found, crops, **PASTING).result
    assert image is batch and not changed.any()


@pytest.mark.parametrize("node", ["RestoreFaces", "FacePaste"])
def test_a_finished_run_gives_freed_memory_back(
    host: hostenv.Host, found: Any, photo: Tensor, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """A checkpoint that the host has let go of would stay in the C library's heap for good."""
    trims: list[int] = []
    monkeypatch.setattr(host.core("heap"), "trim", lambda: trims.append(1))
    values = {name: default for name, (_, default) in host.core("settings").options().items()}
    if node == "RestoreFaces":
        host.nodes.RestoreFaces.execute(torch.full_like(photo, 0.5), 399, reference_weight=1.0, **values)
    else:
        host.nodes.FacePaste.execute(photo.repeat(3, 1, 1, 1), found, found.crops.movedim(1, -1), **PASTING)
    assert trims == [1]
    with pytest.raises(TypeError):
        getattr(host.nodes, node).execute(None)
    assert trims == [1, 1]


def test_the_whole_job_on_a_real_face(host: hostenv.Host, photo: Tensor) -> None:
    values = {name: default for name, (_, default) in host.core("settings").options().items()}
    values["reference_weight"] = 1.0
    batch = torch.cat([photo, torch.full_like(photo, 0.5)])
    image, sheet, report = host.nodes.RestoreFaces.execute(batch, 399, **values).result
    assert image.shape == batch.shape and torch.equal(image[1], batch[1])
    assert not torch.equal(image[0], batch[0]) and torch.equal(image[0, -8:, :8], batch[0, -8:, :8])
    assert sheet.ndim == 4 and sheet.shape[-1] == 3
    assert report.startswith("2 photos, 1 face, on cpu") and "photo 1: no face found, unchanged" in report
    same, _, _ = host.nodes.RestoreFaces.execute(batch, 399, **{**values, "strength": 0.0}).result
    assert torch.equal(same, batch)
    helped, _, report = host.nodes.RestoreFaces.execute(photo, 399, references=photo.flip(2), **values).result
    assert not torch.equal(helped, image[:1]) and "likeness" in report and "(reference)" in report and "trust" in report
    with pytest.raises(Exception, match="no face found in the photos of 'reference'"):
        host.nodes.RestoreFaces.execute(photo, 399, references=batch[1:], **values)
    unlike, report = host.nodes.IdentityScore.execute(photo, image[:1]).result
    assert -1 <= unlike <= 1 and report.startswith("pair 0: ")
    itself, _ = host.nodes.IdentityScore.execute(photo, photo).result
    assert itself == pytest.approx(1.0, abs=1e-4)
    nobody, report = host.nodes.IdentityScore.execute(photo, batch[1:]).result
    assert nobody == 0.0 and report == "pair 0: no face in B"


# Manners


def test_interrupting_stops_detection_alignment_and_sampling(
    host: hostenv.Host, starter: Any, found: Any, photo: Tensor
) -> None:
    import comfy.model_management as mm

    detection = {
        name: default
        for name, (_, default) in host.core("settings").options().items()
        if name in host.module("faces").DETECTION
    }
    for run in (
        lambda: host.nodes.DetectFaces.execute(photo[:, :64, :64], **detection),
        lambda: host.nodes.AlignLatent.execute(starter[1], starter[2], 0.5, 1, 0.5, crops=photo[:, :64, :64]),
        lambda: sample(host, hostenv.tiny_model(), starter[1], found, mode="few-step", identity_weight=1.0),
        lambda: host.nodes.FacePaste.execute(photo.repeat(3, 1, 1, 1), found, torch.ones(2, 512, 512, 3), **PASTING),
    ):
        mm.interrupt_current_processing(True)
        with pytest.raises(mm.InterruptProcessingException):
            run()


def test_networks_are_whole_patchers_in_the_hosts_books(host: hostenv.Host, starter: Any) -> None:
    import comfy.model_management as mm

    mm.unload_all_models()
    adapter = starter[2]
    host.nodes.AlignLatent.execute(starter[1], adapter, 0.5, 4, 0.5, crops=torch.rand(1, 64, 64, 3))
    loaded = mm.loaded_models()
    assert adapter.patcher in loaded and starter[1].patcher in loaded
    assert adapter.patcher.partially_unload(torch.device("cpu"), 1e9) == 0
    mm.unload_all_models()
    assert adapter.patcher not in mm.loaded_models()
    host.nodes.AlignLatent.execute(starter[1], adapter, 0.5, 4, 0.5, crops=torch.rand(1, 64, 64, 3))  # and comes back


def test_clones_share_our_networks(host: hostenv.Host, starter: Any, found: Any) -> None:
    """The host deep-copies hooks that are objects; ours are closures, so ten LoRA nodes cost no ten embedders."""
    patched = host.nodes.IdentityGuidance.execute(hostenv.tiny_model(), starter[1], found, 1.0, 0.0, 1.0).result[0]
    again = patched.clone().clone()
    hooks = [one.model_options["sampler_post_cfg_function"] for one in (patched, again)]
    assert hooks[0][0] is hooks[1][0]
    assert patched.additional_models["lafr_identity"][0].model is again.additional_models["lafr_identity"][0].model


def test_a_folder_gives_every_readable_photo(host: hostenv.Host) -> None:
    from PIL import Image

    folder = host.base / "input" / "album"
    folder.mkdir(parents=True)
    Image.new("RGB", (10, 6), (255, 0, 0)).save(folder / "a.png")
    Image.new("RGBA", (4, 8), (0, 255, 0, 128)).save(folder / "b.png")
    (folder / "c.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    images, names, report = host.nodes.LoadFolder.execute("album").result
    assert [tuple(image.shape) for image in images] == [(1, 6, 10, 3), (1, 8, 4, 4)] and names == ["a", "b"]
    assert report.startswith("2 of 3 photos read\n") and "c.jpg" in report
    assert "album" in host.module("folder").folders()
    for outside in ("..", "../..", "/etc", "album/.."):
        with pytest.raises(host.core("errors").InputError, match="folder: expected a folder inside"):
            host.nodes.LoadFolder.execute(outside)


def test_adapter_files_come_from_the_model_folders(host: hostenv.Host) -> None:
    import shutil

    folder = host.base / "models" / "lafr"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(host.core("store.assets").bundled("adapter"), folder / "mine.safetensors")
    (adapter,) = host.nodes.LoadAdapter.execute("mine.safetensors").result
    assert adapter.spec.name == "sd"
    assert host.nodes.LoadAdapter.execute("mine.safetensors").result[0] is adapter
    before = host.nodes.LoadAdapter.fingerprint_inputs("mine.safetensors")
    (folder / "mine.safetensors").touch()
    assert host.nodes.LoadAdapter.fingerprint_inputs("mine.safetensors") != before
    with pytest.raises(host.core("errors").CheckpointError, match=r"gone.safetensors: expected this file in one of .*lafr"):
        host.nodes.LoadAdapter.execute("gone.safetensors")


# Clips


def test_a_batch_of_frames_is_restored_as_a_clip(host: hostenv.Host, photo: Tensor) -> None:
    """At steadiness 0 frames come out as photos do (one at a time: other last digits), above it calmer."""
    noise = 0.06 * torch.randn(3, *photo.shape[1:], generator=torch.Generator().manual_seed(5))
    frames = (photo + noise).clamp(0, 1)
    values = {name: default for name, (_, default) in host.core("settings").options().items()}
    alone, report = host.nodes.RestoreClip.execute(frames, 0.0, 0.75, 399, **values).result
    photos = host.nodes.RestoreFaces.execute(frames, timestep=399, reference_weight=1.0, **values).result[0]
    assert torch.allclose(alone, photos, atol=1e-4) and "3 frames, faces restored in 3 of them" in report
    steady, _ = host.nodes.RestoreClip.execute(frames, 0.8, 0.75, 399, **values).result
    still = lambda clip: float((clip[1:] - clip[:-1])[:, 90:160, 105:155].abs().mean())
    assert still(steady) < 0.6 * still(alone)


# Videos


def film(host: hostenv.Host, frames: Tensor, folder: Any, name: str = "tape.mp4") -> Any:
    """``frames`` (T, H, W, 3) as a host VIDEO that lies in a file, with a tone of the same length."""
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    tone = torch.sin(torch.arange(len(frames) * 1000) * 0.3)[None, None] * 0.2
    parts = Types.VideoComponents(images=frames, frame_rate=Fraction(8), audio={"waveform": tone, "sample_rate": 8000})
    InputImpl.VideoFromComponents(parts).save_to(str(folder / name))
    return InputImpl.VideoFromFile(str(folder / name))


def video_values(host: hostenv.Host, **changes: Any) -> dict[str, Any]:
    settings = {name: default for name, (_, default) in host.core("settings").options().items()}
    return {
        "steadiness": 0.0,
        "best_frames": 0.75,
        "codec": "auto",
        "crf": 4,
        "deinterlace": False,
        "timestep": 399,
        **settings,
        **changes,
    }


@pytest.fixture
def tape(host: hostenv.Host, tmp_path: Any) -> Any:
    """A VIDEO of six damaged frames of the sample clip, 8 a second."""
    frames = host.module("samples").damaged_clip()[:6].movedim(1, -1).contiguous()
    return film(host, frames, tmp_path)


def test_a_video_file_is_restored_into_a_file_with_its_sound(host: hostenv.Host, tape: Any) -> None:
    import folder_paths

    before = tape.get_components()
    restored, report = host.nodes.RestoreVideo.execute(tape, **video_values(host)).result
    after = restored.get_components()
    assert after.images.shape == before.images.shape == (6, 384, 384, 3) and after.frame_rate == 8
    assert after.audio["sample_rate"] == 8000 and after.audio["waveform"].shape == before.audio["waveform"].shape
    assert "6 frames, 1 of 1 faces followed and restored" in report and "trust" in report
    assert str(restored.get_stream_source()).startswith(folder_paths.get_temp_directory())
    changed = (after.images - before.images).abs().mean((0, 3))
    face, corner = changed[100:200, 140:240].mean(), changed[:40, :40].mean()
    assert face > 0.02 and corner < 0.01
    # At steadiness 0 the frames are the photos' restorations, but for the coding.
    alone = host.nodes.RestoreClip.execute(before.images, **clip_only(video_values(host))).result[0]
    assert (alone - after.images).abs().mean() < 0.01 < (before.images - after.images)[:, 100:200, 140:240].abs().mean()


def clip_only(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("codec", "crf", "deinterlace")}


def test_a_video_in_memory_stays_there_and_equals_the_clip_node(host: hostenv.Host, tape: Any) -> None:
    from comfy_api.latest import InputImpl

    parts = tape.get_components()
    values = video_values(host, steadiness=0.7)
    restored, report = host.nodes.RestoreVideo.execute(InputImpl.VideoFromComponents(parts), **values).result
    expected, told = host.nodes.RestoreClip.execute(parts.images, **clip_only(values)).result
    after = restored.get_components()
    assert torch.equal(after.images, expected) and report == told
    assert torch.equal(after.audio["waveform"], parts.audio["waveform"]) and after.frame_rate == 8


def test_a_part_of_a_video_is_that_part_restored(host: hostenv.Host, tape: Any) -> None:
    from comfy_api.latest import InputImpl

    if not hasattr(tape, "get_active_trim_window"):
        pytest.skip("this ComfyUI cannot trim a VIDEO")
    part = InputImpl.VideoFromFile(tape.get_stream_source(), start_time=0.25, duration=0.25)
    restored, report = host.nodes.RestoreVideo.execute(part, **video_values(host, faces="7")).result
    assert len(restored.get_components().images) == len(part.get_components().images) < 6
    assert "no face found, unchanged" in report  # there is no eighth face


def test_an_interrupted_video_leaves_nothing_behind(host: hostenv.Host, tape: Any) -> None:
    from pathlib import Path

    import comfy.model_management as mm
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    left = lambda: sorted(folder.glob("lafr_*")) if folder.exists() else []
    before = left()
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        host.nodes.RestoreVideo.execute(tape, **video_values(host))
    assert left() == before


def test_the_sample_clip_moves_and_flickers(host: hostenv.Host) -> None:
    damaged, sharp = host.nodes.SamplePhoto.execute("clip", "medium").result
    assert damaged.shape == sharp.shape == (16, 384, 384, 3)
    still = host.module("samples").damaged_clip("medium")[0].movedim(0, -1)
    assert torch.equal(damaged[0], still)
    assert (sharp[0] - sharp[8]).abs().mean() > 0.02 and (damaged - sharp).abs().mean() > 0.02
