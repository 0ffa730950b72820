"""The prior's LoRA: trained on a tiny real diffusers UNet, exported, and loaded again by every route."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train_tiny import CONTEXT_WIDTH, settings, tiny_unet, unet_folder

from lafr_core.errors import CheckpointError, InputError
from lafr_core.latent import lora as loras
from lafr_core.latent.adapter import open_adapter
from lafr_core.latent.folding import fold_constants
from lafr_core.latent.sd_prior import load_context, open_sd_prior
from train.config import Config, PriorStage
from train.engine import parts, run
from train.tasks import adapter, codebook, prior
from train.tools.export import export, to_diffusers

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """All three stages for two or three steps; the prior as a LoRA on a v-prediction UNet."""
    folder = tmp_path_factory.mktemp("trained")
    unet = unet_folder(folder / "unet", "v_prediction")
    conf = settings(
        folder, "run", **{"models.unet": unet, "codebook.steps": 2, "adapter.steps": 2, "prior.steps": 3, "prior.lr": 1e-2,
                          "prior.warmup": 1, "prior.timestep": 250, "prior.ema": 0.1},
    )  # fmt: skip
    for task in (codebook.CodebookTask, adapter.AdapterTask, prior.PriorTask):
        run.run(task, conf)
    return folder, conf


@pytest.fixture(scope="module")
def exported(trained: tuple[Path, Config]) -> Path:
    folder, conf = trained
    export(Path(conf.log.out), "prior", folder / "out")
    export(Path(conf.log.out), "adapter", folder / "out")
    return folder / "out"


def test_lora_learned_something(exported: Path) -> None:
    up = [t for name, t in load_file(str(exported / "lafr_lora.safetensors")).items() if name.endswith("lora_up.weight")]
    assert all(bool(t.abs().max() > 0) for t in up)


def test_metadata_say_what_the_lora_is_for(exported: Path) -> None:
    with safe_open(str(exported / "lafr_lora.safetensors"), "pt") as file:
        metadata = file.metadata()
    wanted = {
        "base_model": "other",
        "context_dim": str(CONTEXT_WIDTH),
        "timestep": "250",
        "prediction": "v_prediction",
        "rank": "4",
    }
    assert {key: metadata[key] for key in wanted} == wanted


def test_kohya_keys_have_the_shapes_hosts_expect(exported: Path) -> None:
    tensors = load_file(str(exported / "lafr_lora.safetensors"))
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert tensors[f"{name}.lora_down.weight"].shape == (4, 16, 3, 3)
    assert tensors[f"{name}.lora_up.weight"].shape == (16, 4, 1, 1)
    assert float(tensors[f"{name}.alpha"]) == 4.0
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in tensors


def test_exported_prior_equals_the_trained_network(trained: tuple[Path, Config], exported: Path) -> None:
    """UNet with live peft layers (averaged weights) == lafr_core's prior: LoRA merged from the file, constants folded."""
    folder, conf = trained
    opened = open_sd_prior(folder / "unet", lora=exported / "lafr_lora.safetensors")
    assert (opened.timestep, opened.prediction) == (250, "v_prediction")
    live = parts.lora_prior(conf, torch.device("cpu"))
    state = parts.checkpoints.open_checkpoint(conf.log.out, "prior")[2]
    live.load_state_dict(parts.averaged(state), strict=False)
    z = noise(2, 4, 8, 8)
    with torch.no_grad():
        wanted, plain = live(z), parts.lora_prior(conf, torch.device("cpu"))(z)
    assert (wanted - plain).abs().max() > 1e-2  # the LoRA matters, or the next line would prove nothing
    torch.testing.assert_close(opened(z), wanted, atol=2e-3, rtol=2e-3)  # the file is fp16


def test_diffusers_loads_its_own_format(trained: tuple[Path, Config], exported: Path) -> None:
    folder, _ = trained
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(folder / "unet"), use_safetensors=True)
    tensors = load_file(str(exported / "lafr_lora_diffusers.safetensors"))
    unet.load_lora_adapter(tensors, prefix="unet")
    context = load_context(exported / "empty_prompt.safetensors")
    z = noise(1, 4, 8, 8, seed=3)
    opened = open_sd_prior(folder / "unet", lora=exported / "lafr_lora.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(unet(z, 250, context).sample, opened.network(z), atol=1e-3, rtol=1e-3)


def test_diffusers_format_carries_alpha_in_b() -> None:
    tensors = {"a.lora_A.default.weight": torch.full((4, 3), 2.0), "a.lora_B.default.weight": torch.full((3, 4), 3.0)}
    out = to_diffusers(tensors, 0.5)
    assert float(out["unet.a.lora_A.weight"][0, 0]) == 2.0
    assert float(out["unet.a.lora_B.weight"][0, 0]) == 1.5


def test_peft_becomes_kohya() -> None:
    tensors = {"down_blocks.0.conv_in.lora_A.weight": noise(4, 3), "down_blocks.0.conv_in.lora_B.weight": noise(5, 4)}
    kohya = loras.peft_to_kohya({f"base_model.model.unet.{k}": t for k, t in tensors.items()}, alpha=8.0)
    assert sorted(kohya) == [
        f"lora_unet_down_blocks_0_conv_in.{end}" for end in ("alpha", "lora_down.weight", "lora_up.weight")
    ]
    assert torch.equal(kohya["lora_unet_down_blocks_0_conv_in.lora_down.weight"], next(iter(tensors.values())))
    assert torch.equal(kohya["lora_unet_down_blocks_0_conv_in.lora_up.weight"], list(tensors.values())[1])
    assert float(kohya["lora_unet_down_blocks_0_conv_in.alpha"]) == 8.0


def test_merge_is_w_plus_scaled_up_down_and_strength_counts() -> None:
    unet = tiny_unet()
    path = "down_blocks.0.resnets.0.conv1"
    before = unet.get_submodule(path).weight.clone()  # type: ignore[operator]
    down, up = noise(2, 16, 3, 3), noise(16, 2, 1, 1, seed=1)
    name = "lora_unet_" + path.replace(".", "_")
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    loras.merge(unet, loras.Lora(tensors, {}), strength=0.5)
    wanted = before + 0.5 * 0.5 * torch.einsum("or,rikl->oikl", up[..., 0, 0], down)
    torch.testing.assert_close(unet.get_submodule(path).weight, wanted, atol=1e-6, rtol=0)


def test_merge_refuses_another_family_and_changes_nothing() -> None:
    unet = tiny_unet()
    before = {name: t.clone() for name, t in unet.state_dict().items()}
    good = "lora_unet_down_blocks_0_resnets_0_conv1"
    bad = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{good}.lora_down.weight": noise(2, 16, 3, 3), f"{good}.lora_up.weight": noise(16, 2, 1, 1),
        f"{bad}.lora_down.weight": noise(2, 320, 3, 3), f"{bad}.lora_up.weight": noise(320, 2, 1, 1),
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"mid_block\.resnets\.0\.conv1 is \(32, 32, 3, 3\) in this UNet"):
        loras.merge(unet, loras.Lora(tensors, {}))
    assert all(torch.equal(t, before[name]) for name, t in unet.state_dict().items())
    with pytest.raises(CheckpointError, match="names no module of this UNet"):
        loras.merge(unet, loras.Lora({"lora_unet_nowhere.lora_down.weight": noise(2, 2)}, {}))


def test_wrong_lora_files_are_refused_by_name(tmp_path: Path, trained: tuple[Path, Config]) -> None:
    raw = tmp_path / "raw_peft.safetensors"
    save_file({"base_model.model.mid_block.lora_A.weight": noise(2, 2)}, str(raw))
    with pytest.raises(CheckpointError, match="expected kohya names"):
        loras.load_lora(raw)
    wide = tmp_path / "sd2.safetensors"
    name = "lora_unet_conv_in"
    save_file(
        {f"{name}.lora_down.weight": noise(4, 4, 3, 3), f"{name}.lora_up.weight": noise(16, 4, 1, 1)},
        str(wide),
        {"context_dim": "1024"},
    )
    with pytest.raises(CheckpointError, match=f"text width 1024, this UNet's is {CONTEXT_WIDTH}"):
        open_sd_prior(trained[0] / "unet", lora=wide)


def test_sdxl_and_inpainting_unets_are_refused(tmp_path: Path) -> None:
    xl = tmp_path / "xl"
    xl.mkdir()
    (xl / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time", "cross_attention_dim": 2048}'
    )
    with pytest.raises(CheckpointError, match=r"SDXL UNet, the adapter is for SD 1.x/2.x"):
        open_sd_prior(xl)
    (xl / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "in_channels": 9}')
    with pytest.raises(CheckpointError, match="9 is an inpainting model"):
        open_sd_prior(xl)
    with pytest.raises(CheckpointError, match="expected a diffusers UNet folder"):
        open_sd_prior(tmp_path / "nothing")


def test_missing_and_wrong_context(tmp_path: Path) -> None:
    folder = unet_folder(tmp_path / "u")
    (folder / "empty_prompt.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no empty-prompt embedding"):
        open_sd_prior(folder)
    save_file({"context": noise(1, 7, 768)}, str(folder / "empty_prompt.safetensors"))
    with pytest.raises(CheckpointError, match=f"expected width {CONTEXT_WIDTH} for this UNet, got 768"):
        open_sd_prior(folder)


def test_exported_adapter_opens_in_the_library(exported: Path) -> None:
    aligner = open_adapter(exported / "adapter.safetensors")
    out = aligner(noise(2, 4, 8, 8), 0.3)
    assert out.latents.shape == (2, 4, 8, 8) and out.confidence.shape == (2, 1, 8, 8)


def test_export_of_a_stage_that_was_not_trained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a prior checkpoint .* found none; train that stage first"):
        export(tmp_path, "prior", tmp_path / "out")


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (12, 10), (7, 9)])
def test_folding_changes_nothing(linear: bool, size: tuple[int, int]) -> None:
    unet = tiny_unet(use_linear_projection=linear)
    context = noise(1, 7, CONTEXT_WIDTH)
    folded = fold_constants(unet, 399, context)
    x = noise(3, 4, *size, seed=1)
    with torch.no_grad():
        wanted = unet(x, 399, context.expand(3, -1, -1)).sample
        other = unet(x, 10, context.expand(3, -1, -1)).sample
        text = unet(x, 399, context.expand(3, -1, -1) + 1).sample
    assert (wanted - other).abs().max() > 1e-3 and (wanted - text).abs().max() > 1e-3  # both constants matter here
    assert (folded(x) - wanted).abs().max() <= 1e-4
    names = [name for name, _ in folded.named_modules()]
    assert not any("time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name for name in names)


def test_folding_keeps_the_original_and_shares_its_weights() -> None:
    unet = tiny_unet()
    before = {name: t.clone() for name, t in unet.state_dict().items()}
    folded = fold_constants(unet, 399, noise(1, 7, CONTEXT_WIDTH))
    assert all(torch.equal(t, before[name]) for name, t in unet.state_dict().items())
    assert folded.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()  # type: ignore[union-attr, operator]


def test_folding_refuses_what_it_cannot_fold() -> None:
    with pytest.raises(InputError, match=rf"expected a context \(1, tokens, {CONTEXT_WIDTH}\), got \(1, 7, 8\)"):
        fold_constants(tiny_unet(), 399, noise(1, 7, 8))
    with pytest.raises(InputError, match="scale-shift"):
        fold_constants(tiny_unet(resnet_time_scale_shift="scale_shift"), 399, noise(1, 7, CONTEXT_WIDTH))
    with pytest.raises(InputError, match="class_embed_type"):
        fold_constants(tiny_unet(class_embed_type="timestep"), 399, noise(1, 7, CONTEXT_WIDTH))


SD21 = {  # stabilityai/stable-diffusion-2-1, unet/config.json
    "sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "layers_per_block": 2,
}  # fmt: skip


def test_trainable_parameters_on_sd21_stay_below_7_5_million() -> None:
    from lafr_core.latent.networks.adapter import AdapterNet

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SD21)
        parts.add_lora(unet, PriorStage())
        adapter_parameters = sum(p.numel() for p in AdapterNet().parameters())
    assert sum(p.numel() for n, p in unet.named_parameters() if ".lora_" not in n) == 865_910_724  # it is SD 2.1
    learning = {n for n, p in unet.named_parameters() if p.requires_grad}
    assert all(".lora_" in n for n in learning)
    assert any(".attn2.to_k." in n for n in learning) and any(".resnets.0.conv1." in n for n in learning)
    lora = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    assert lora + adapter_parameters <= 7_500_000
