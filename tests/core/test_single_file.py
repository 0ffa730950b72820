"""Single-file Stable Diffusion checkpoints: names, sizes, prediction and the empty prompt, fp16 too; few steps; refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr_core import errors
from lafr_core.latent import clip_text, sd_prior, single_file
from lafr_core.latent.prediction import alphas_cumprod
from lafr_core.models import check_checkpoint

diffusers = pytest.importorskip("diffusers")

SIZES = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
}
TINY: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "sample_size": 8,
}


def original_name(name: str) -> str:
    """A diffusers UNet tensor name in the original code's words: the other way round, written down on its own."""
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    whole = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0", "conv_out": "out.2",
    }  # fmt: skip
    module, _, kind = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module):
        place = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[match[1] + match[2]]
        return f"middle_block.{place}.{inner.get(match[3], match[3])}.{kind}"
    if match := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op.{kind}"
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", module):
        return f"output_blocks.{3 * int(match[1]) + 2}.{1 if match[1] == '0' else 2}.conv.{kind}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", module)
    assert match, name
    number = 3 * int(match[2]) + int(match[4])
    side = f"input_blocks.{number + 1}" if match[1] == "down" else f"output_blocks.{number}"
    return f"{side}.{int(match[3] == 'attentions')}.{inner.get(match[5], match[5])}.{kind}"


def tiny_unet() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return diffusers.UNet2DConditionModel(**TINY).eval()


def text_model(layers: int = 2) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=24, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=1,
        max_position_embeddings=77, hidden_act="quick_gelu",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return transformers.CLIPTextModel(config).eval()


def text_tensors(model: Any) -> dict[str, Tensor]:
    """Hugging Face's tensors as SD 1.x files name them (newer transformers leave the word text_model out)."""
    names = {name.removeprefix("text_model."): t for name, t in model.state_dict().items() if "position_ids" not in name}
    return {f"cond_stage_model.transformer.text_model.{name}": t.clone() for name, t in names.items()}


def single(path: Path, unet: nn.Module, text: dict[str, Tensor], half: bool = False) -> Path:
    tensors = {f"model.diffusion_model.{original_name(name)}": t.clone() for name, t in unet.state_dict().items()}
    tensors |= {**text, "first_stage_model.quant_conv.bias": torch.zeros(8)}
    save_file({name: t.half() if half else t for name, t in tensors.items()}, str(path))
    return path


@pytest.mark.parametrize("kind", SIZES)
def test_every_name_of_the_real_unets_is_known(kind: str) -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, **SIZES[kind])
    names = list(unet.state_dict())
    assert len(names) == 686
    assert [single_file.diffusers_name(original_name(name)) for name in names] == names
    config = single_file._config(unet.state_dict(), Path(kind))
    with torch.device("meta"):
        again = diffusers.UNet2DConditionModel(**config)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in unet.state_dict().items()}
    heads = lambda model: [m.heads for m in model.modules() if type(m).__name__ == "Attention"]
    assert heads(again) == heads(unet)


@pytest.mark.parametrize("half", [False, True])
def test_a_file_gives_the_unet_and_the_empty_prompt_that_were_put_in(tmp_path: Path, half: bool) -> None:
    unet, text = tiny_unet(), text_model()
    path = single(tmp_path / "tiny.safetensors", unet, text_tensors(text), half)
    opened = sd_prior.load_unet(path)
    z, t, context = torch.randn(2, 4, 8, 8), torch.tensor([399, 399]), torch.randn(2, 5, 24)
    tolerance = 0.02 if half else 1e-5
    kept = unet.state_dict()
    assert all(torch.equal(t, kept[n].half().float() if half else kept[n]) for n, t in opened.state_dict().items())
    with torch.no_grad():
        assert half or torch.allclose(opened(z, t, context).sample, unet(z, t, context).sample, atol=tolerance)
        tokens = torch.tensor([[49406] + [49407] * 76])
        wanted = text(tokens).last_hidden_state
    found = sd_prior.find_context(path)
    assert found.shape == (1, 77, 24) and torch.allclose(found, wanted, atol=tolerance)
    assert sd_prior.prediction_of(path) == "epsilon"


def test_openclip_text_is_read_to_the_last_but_one_layer_with_zero_padding() -> None:
    text = text_model(layers=3)
    tensors = {name.split("text_model.")[1]: t for name, t in text_tensors(text).items()}
    words = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    open_names = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
    }
    for number in range(3):
        layer, block = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            parts = [tensors[f"{layer}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            open_names[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            open_names[f"{block}attn.out_proj.{kind}"] = tensors[f"{layer}self_attn.out_proj.{kind}"]
            open_names |= {f"{block}{new}.{kind}": tensors[f"{layer}{old}.{kind}"] for old, new in words.items()}
    found = clip_text.empty_prompt({f"cond_stage_model.model.{name}": t for name, t in open_names.items()})
    with torch.no_grad():
        wanted = clip_text._encode(tensors, 2, padding=0, quick=False)
        assert found is not None and torch.equal(found, wanted)
        assert not torch.allclose(wanted, clip_text._encode(tensors, 3, padding=0, quick=False))
        assert not torch.allclose(wanted, clip_text._encode(tensors, 2, padding=49407, quick=False))
    assert clip_text.empty_prompt({"model.diffusion_model.out.2.bias": torch.zeros(4)}) is None


def test_v_prediction_is_told_by_the_spread_of_one_norm(tmp_path: Path) -> None:
    wide = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for spread, width, expected in ((0.2, 1024, "v_prediction"), (0.01, 1024, "epsilon"), (0.2, 768, "epsilon")):
        tensors = {
            f"model.diffusion_model.{single_file.V_TENSOR}": torch.tensor([-spread, spread]),
            wide: torch.zeros(4, width),
        }
        save_file(tensors, str(tmp_path / "x.safetensors"))
        assert single_file.prediction(tmp_path / "x.safetensors") == expected


def test_other_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, str(path))
    with pytest.raises(errors.CheckpointError, match="this is an SDXL checkpoint"):
        sd_prior.load_unet(path)
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, str(path))
    with pytest.raises(errors.CheckpointError, match=r"expected an SD 1.x/2.x checkpoint or UNet"):
        sd_prior.load_unet(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(errors.CheckpointError, match="not a readable safetensors file"):
        sd_prior.load_unet(path)
    save_file({"model.diffusion_model.strange.0.weight": torch.zeros(1)}, str(path))
    with pytest.raises(errors.CheckpointError, match=r"not of the SD 1.x/2.x kind \(unexpected tensor strange.0.weight\)"):
        sd_prior.load_unet(path)


class Echo(nn.Module):
    """A UNet that knows the clean latents: its epsilon is what is left over."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean, self.scale = clean, nn.Parameter(torch.ones(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Any:
        self.seen.append(int(t[0]))
        alpha = float(alphas_cumprod()[int(t[0])])
        return type("Out", (), {"sample": (x - alpha**0.5 * self.clean) / (1 - alpha) ** 0.5 * self.scale})


def test_few_steps_end_at_what_the_unet_believes_in(tmp_path: Path) -> None:
    clean = torch.randn(2, 4, 8, 8)
    unet = Echo(clean)
    prior = sd_prior.FewStepPrior(unet, torch.zeros(1, 1, 4), prediction="epsilon", steps=3, denoise=0.3, seed=0, name="echo")
    z = torch.randn(2, 4, 8, 8)
    assert torch.allclose(prior(z), clean, atol=1e-4)
    assert unet.seen == [300, 200, 100]
    with torch.no_grad():
        unet.scale.fill_(0.0)  # it believes that there is no noise: the latents keep what was added
    one, two = prior(z), prior(z[1:])
    assert torch.allclose(one[1:], two, atol=1e-6) and not torch.allclose(one, z, atol=0.1)  # a face's own result


def test_modes_say_what_they_need(tmp_path: Path) -> None:
    path = single(tmp_path / "tiny.safetensors", tiny_unet(), text_tensors(text_model()))
    with pytest.raises(errors.InputError, match=r"one step needs the LAFR LoRA .* give --lora, or choose --mode few-step"):
        sd_prior.open_sd_finisher(path, mode="one-step")
    with pytest.raises(errors.InputError, match="expected one of auto, one-step, few-step, got 'fast'"):
        sd_prior.open_sd_finisher(path, mode="fast")
    with pytest.raises(errors.InputError, match="1 or more steps and denoise"):
        sd_prior.open_sd_finisher(path, steps=0)
    auto = sd_prior.open_sd_finisher(path, steps=2, denoise=0.5)
    assert isinstance(auto, sd_prior.FewStepPrior) and auto.times == [500, 250] and auto.name == "tiny.safetensors"
    z = torch.randn(1, 4, 8, 8)
    assert auto(z).shape == z.shape and bool(torch.isfinite(auto(z)).all())
    with pytest.raises(errors.InputError, match="lora: belongs to a Stable Diffusion checkpoint"):
        check_checkpoint(None, None, path, "auto", None, None)
    with pytest.raises(errors.InputError, match="give one of the two"):
        check_checkpoint(path, path, None, "auto", None, None)
    check_checkpoint(path, None, path, "auto", None, None)
    assert cast(Any, sd_prior.MODES) == ("auto", "one-step", "few-step")
