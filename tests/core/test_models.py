"""Opening weight files: our own, diffusers folders and single files, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lafr_core.errors import CheckpointError, InputError
from lafr_core.latent import vae
from lafr_core.latent.adapter import Adapter, open_adapter
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.latent.prior import open_prior
from lafr_core.latent.sd_prior import _json
from lafr_core.latent.spec import family
from lafr_core.latent.vae import _diffusers_name, open_tiny, open_vae
from lafr_core.store import checkpoint

SMALL_VAE = {"encoder": {"fine": 8, "coarse": 8, "fine_blocks": 1, "coarse_blocks": 1},
             "decoder": {"fine": 8, "coarse": 8, "fine_blocks": 1, "coarse_blocks": 1}}  # fmt: skip
SMALL_ADAPTER = {"width": 8, "coarse": 16, "deep": 16, "code_width": 4, "entries": 6, "depth": 1, "grid": 16}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(3)
    nets = {
        "vae": StarterVaeNet(**SMALL_VAE),
        "adapter": AdapterNet(**SMALL_ADAPTER),
        "prior": PriorNet(widths=(8, 16, 16), depth=2, grid=16),
    }
    torch.nn.init.normal_(nets["prior"].out.weight, std=0.1)
    paths = {}
    for kind, net in nets.items():
        paths[kind] = tmp_path / f"{kind}.safetensors"
        checkpoint.save(paths[kind], kind, net, net.config)
    return paths


def test_starter_files_round_trip_and_work(files: dict[str, Path]) -> None:
    vae, adapter, prior = open_vae(files["vae"]), open_adapter(files["adapter"]), open_prior(files["prior"])
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        z = vae.encode(pixels)
        aligned = adapter(z, 0.5)
        image = vae.decode(prior(aligned.latents))
    assert z.shape == aligned.latents.shape == (2, 4, 16, 16)
    assert aligned.confidence.shape == (2, 1, 16, 16)
    assert aligned.confidence.min() >= 0 and aligned.confidence.max() <= 1
    assert image.shape == pixels.shape and image.min() >= 0 and image.max() <= 1


def test_a_family_without_a_judge_says_how_near_the_codes_are(files: dict[str, Path]) -> None:
    judged = open_adapter(files["adapter"])
    z = torch.randn(1, 4, 16, 16)
    bare = Adapter(judged.network, judged.spec)(z, 0.5)
    output = judged.network(z, torch.full((1, 1, 1, 1), 0.5))
    near = judged.network.codebook.confidence(output.match.distance)
    assert torch.equal(bare.confidence, F.interpolate(near, size=(16, 16), mode="bilinear"))
    assert judged.judge is not None and torch.equal(judged(z, 0.5).confidence, judged.judge.confidence(z, output.latents))
    assert torch.equal(bare.latents, judged(z, 0.5).latents)


def test_fidelity_changes_the_result_and_is_bounded(files: dict[str, Path]) -> None:
    adapter = open_adapter(files["adapter"])
    z = torch.randn(1, 4, 16, 16)
    assert not torch.allclose(adapter(z, 0.0).latents, adapter(z, 1.0).latents)
    with pytest.raises(InputError, match=re.escape("fidelity: expected 0 to 1, got 1.5")):
        adapter(z, 1.5)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(1, 16, 16, 16), r"expected \(B, 4, h, w\) for the sd latent space, got \(1, 16, 16, 16\)"),
        (torch.full((1, 4, 16, 16), float("nan")), "contain NaN or infinite"),
        (torch.zeros(1, 4, 16, 18), r"multiples of 4, got \(16, 18\)"),
        (torch.zeros(1, 4, 16, 16, dtype=torch.int32), "expected a floating tensor"),
    ],
)
def test_adapter_refuses_what_it_cannot_use(files: dict[str, Path], latents: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter(files["adapter"])(latents, 1.0)


def test_a_file_of_another_kind_is_refused_by_name(files: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="expected a LAFR adapter file, got a prior file; pass it as the prior"):
        open_adapter(files["prior"])
    with pytest.raises(CheckpointError, match="expected a LAFR vae file, got a prior file"):
        open_vae(files["prior"])


def test_missing_and_damaged_files_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no file there"):
        open_prior(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="found nothing there"):
        open_vae(tmp_path / "absent.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(files["prior"].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        open_prior(damaged)


@pytest.mark.parametrize("config", [{"widht": 8}, {"width": "wide"}, {"entries": 4, "top_k": 9}])
def test_a_config_that_builds_no_network_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    path = tmp_path / "adapter.safetensors"
    checkpoint.save(path, "adapter", AdapterNet(**SMALL_ADAPTER), config)
    with pytest.raises(CheckpointError, match="does not describe the kind of adapter that this LAFR knows"):
        open_adapter(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, foreign)
    with pytest.raises(CheckpointError, match="without LAFR metadata"):
        open_prior(foreign)
    with pytest.raises(CheckpointError, match="expected a LAFR vae file or an SD AutoencoderKL"):
        open_vae(foreign)


def test_pixels_must_be_multiples_of_the_factor(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"multiples of 8, got \(1, 3, 20, 16\)"):
        open_vae(files["vae"]).encode(torch.zeros(1, 3, 20, 16))


def test_tiny_and_kl_folders_share_one_scale(tmp_path: Path) -> None:
    """diffusers folders: AutoencoderTiny is scaled already, AutoencoderKL's latents are scaled here, and its mode is taken."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kl = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    kl.save_pretrained(tmp_path / "kl")
    vae = open_vae(tmp_path / "kl")
    pixels = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        z = vae.encode(pixels)
        raw = kl.encode(pixels * 2 - 1).latent_dist.mean
        torch.testing.assert_close(z, raw * 0.18215)
        torch.testing.assert_close(z, vae.encode(pixels), rtol=0, atol=0)
        torch.testing.assert_close(vae.decode(z), (kl.decode(raw).sample * 0.5 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)

    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4), decoder_block_out_channels=(4, 4, 4, 4),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "tiny")
    vae = open_vae(tmp_path / "tiny")
    with torch.no_grad():
        z = vae.encode(pixels)
        torch.testing.assert_close(z, tiny.encode(pixels * 2 - 1).latents)
        torch.testing.assert_close(vae.decode(z), (tiny.decode(z).sample * 0.5 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(("family", "stem", "channels"), [("sd", "taesd", 4), ("sdxl", "taesdxl", 4), ("flux", "taef1", 16)])
def test_a_tiny_autoencoder_from_its_two_files(tmp_path: Path, family: str, stem: str, channels: int) -> None:
    """The author's decoder counts its clamp as layer 0, so that the names of its layers are one above diffusers'."""
    diffusers = pytest.importorskip("diffusers")
    tiny = diffusers.AutoencoderTiny(latent_channels=channels)
    for part, offset in (("encoder", 0), ("decoder", 1)):
        state = getattr(tiny, part).state_dict()
        names = {name: name.removeprefix("layers.").split(".", 1) for name in state}
        author = {f"{int(layer) + offset}.{rest}": state[name] for name, (layer, rest) in names.items()}
        save_file(author, tmp_path / f"{stem}_{part}.safetensors")
    vae, pixels = open_tiny(tmp_path, family), torch.rand(1, 3, 32, 40)
    assert vae.spec.name == family
    with torch.no_grad():
        z = tiny.encode(pixels * 2 - 1).latents
        torch.testing.assert_close(vae.encode(pixels), z)
        torch.testing.assert_close(vae.decode(z), (tiny.decode(z).sample * 0.5 + 0.5).clamp(0, 1))
    save_file({"0.weight": torch.zeros(1)}, tmp_path / f"{stem}_decoder.safetensors")
    with pytest.raises(CheckpointError, match=f"its tensors are not those of a {stem} decoder"):
        open_tiny(tmp_path, family)
    (tmp_path / f"{stem}_encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"expected the {stem} encoder there, found none; get both files"):
        open_tiny(tmp_path, family)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_tiny_folder_is_told_by_its_gray(tmp_path: Path, shared_weights: Path, name: str) -> None:
    """diffusers' config.json of a TAESD sibling names no family, and two families share each number of channels."""
    pytest.importorskip("diffusers")
    open_tiny(shared_weights, name).network.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert open_vae(tmp_path).spec.name == name


def test_an_encoder_that_knows_no_gray_is_read_as_the_first_family(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    for channels, name in ((4, "sd"), (16, "sd3")):
        diffusers.AutoencoderTiny(latent_channels=channels).save_pretrained(tmp_path)
        assert open_vae(tmp_path).spec.name == name


def test_an_sdxl_vae_in_one_file_is_told_from_sds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files have the same tensors. The last bias alone decides here: all weights of the encoder's end are 0."""
    diffusers = pytest.importorskip("diffusers")
    small = {**vae._SD_VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    monkeypatch.setattr(vae, "_SD_VAE", small)
    kl = diffusers.AutoencoderKL(**small)
    for name in ("sd", "sdxl"):
        spec = family(name)
        with torch.no_grad():
            kl.quant_conv.weight.zero_()
            kl.quant_conv.bias.copy_(torch.cat([spec.to_raw(torch.tensor(spec.gray)), torch.zeros(4)]))
        save_file(kl.state_dict(), tmp_path / f"{name}.safetensors")
        assert open_vae(tmp_path / f"{name}.safetensors").spec == spec


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    pytest.importorskip("diffusers")
    with pytest.raises(
        CheckpointError, match=r"expected AutoencoderKL or AutoencoderTiny in config\.json, got 'UNet2DConditionModel'"
    ):
        open_vae(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a diffusers VAE folder with a readable config\.json"):
        open_vae(tmp_path / "..")


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
        ("encoder.down.0.downsample.conv.bias", "encoder.down_blocks.0.downsamplers.0.conv.bias"),
        ("encoder.mid.attn_1.q.weight", "encoder.mid_block.attentions.0.to_q.weight"),
        ("encoder.mid.attn_1.proj_out.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
        ("encoder.norm_out.weight", "encoder.conv_norm_out.weight"),
        ("decoder.up.3.block.2.conv1.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
        ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
        ("decoder.mid.block_2.norm1.weight", "decoder.mid_block.resnets.1.norm1.weight"),
        ("quant_conv.weight", "quant_conv.weight"),
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
    ],
)
def test_original_vae_names_are_known(original: str, diffusers: str) -> None:
    assert _diffusers_name(original) == diffusers


def test_a_config_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="expected a diffusers VAE folder with a readable"):
        open_vae(tmp_path)
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        _json(tmp_path / "config.json")
