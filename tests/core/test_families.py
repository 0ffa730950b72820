"""Adapters for further latent families: which one is taken, what is refused, and that they bring real faces closer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lafr_core.app.cli import main
from lafr_core.errors import CheckpointError, InputError
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.spec import family
from lafr_core.latent.vae import open_tiny
from lafr_core.models import open_models, prior_note
from lafr_core.pipeline import restore_pixels
from lafr_core.settings import RestoreSettings
from lafr_core.store.assets import bundled

OTHERS = ("sdxl", "sd3", "flux")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of an untrained VAE with the scaling factor of SDXL, by which it is recognised."""
    diffusers = pytest.importorskip("diffusers")
    spec = family("sdxl")
    kl = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, scaling_factor=spec.scale,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sdxl")
    kl.save_pretrained(folder)
    return folder


def test_each_family_has_a_file_of_its_own() -> None:
    assert [bundled("adapter", name).name for name in ("sd", *OTHERS)] == [
        "adapter.safetensors", "adapter_sdxl.safetensors", "adapter_sd3.safetensors", "adapter_flux.safetensors"
    ]  # fmt: skip
    assert bundled("prior") == bundled("prior", "sd")


@pytest.mark.parametrize("name", OTHERS)
def test_the_bundled_adapter_is_the_familys(name: str) -> None:
    assert bundled("adapter", name).stat().st_size <= 5_000_000
    adapter = open_adapter(latents=name)
    assert adapter.spec == family(name) and adapter.network.config["channels"] == family(name).channels
    z = torch.randn(1, adapter.spec.channels, 16, 16)
    assert adapter(z, 0.75).latents.shape == z.shape
    with pytest.raises(InputError, match=rf"expected \(B, {adapter.spec.channels}, h, w\) for the {name} latent space"):
        adapter(torch.randn(1, 20 - adapter.spec.channels, 16, 16), 0.75)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InputError, match="latent family: expected one of sd, sdxl, sd3, flux, got 'sd4'"):
        open_adapter(latents="sd4")


def test_the_vae_chooses_the_adapter_and_the_starter_prior_stays_out(sdxl: Path) -> None:
    parts = open_models(RestoreSettings(), device="cpu", vae=sdxl)
    assert parts.vae.spec == parts.aligner.spec == family("sdxl")  # type: ignore[union-attr]
    assert parts.prior is None
    assert prior_note(parts) == "faces are aligned only: the starter prior finishes sd latents, not sdxl latents"
    crops = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = parts.vae.decode(parts.aligner(parts.vae.encode(crops), 0.75).latents)  # type: ignore[misc]
        assert torch.equal(restore_pixels(crops, parts, 0.75), expected)


def test_parts_of_another_family_are_refused(sdxl: Path) -> None:
    with pytest.raises(CheckpointError, match="prior: expected one for the VAE's sdxl latents, got one for sd latents"):
        open_models(RestoreSettings(), device="cpu", vae=sdxl, prior=bundled("prior"))
    with pytest.raises(CheckpointError, match="adapter: expected one for the VAE's sdxl latents, got one for sd latents"):
        open_models(RestoreSettings(), device="cpu", vae=sdxl, adapter=bundled("adapter"))
    with pytest.raises(CheckpointError, match="adapter: expected one for the VAE's sd latents, got one for flux latents"):
        open_models(RestoreSettings(), device="cpu", adapter=bundled("adapter", "flux"))


def test_the_starter_has_no_note() -> None:
    assert prior_note(open_models(RestoreSettings(), device="cpu")) == ""


def test_the_command_line_says_that_faces_are_aligned_only(
    sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), (90, 120, 150)).save(tmp_path / "face.png")
    arguments = ["restore", "--aligned", tmp_path / "face.png", "-o", tmp_path / "out", "--vae", sdxl, "--device", "cpu"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "lafr: faces are aligned only: the starter prior finishes sd latents, not sdxl latents" in capsys.readouterr().err


@pytest.mark.parametrize("name", OTHERS)
def test_a_degraded_face_comes_closer_to_the_sharp_one(name: str, faces_folder: Path, shared_weights: Path) -> None:
    pytest.importorskip("diffusers")
    from benchmarks.quality import cases

    case = next(cases(faces_folder, "medium", 1))
    vae, adapter = open_tiny(shared_weights, name), open_adapter(latents=name)
    with torch.no_grad():
        z_lq, z_hq = vae.encode(torch.cat([case.low, case.sharp])[..., 128:384, 128:384]).chunk(2)
        z_al = adapter(z_lq, RestoreSettings().fidelity).latents
    assert (z_al - z_hq).abs().mean() < 0.85 * (z_lq - z_hq).abs().mean()
