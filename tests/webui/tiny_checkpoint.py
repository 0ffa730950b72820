"""A Stable Diffusion 1.x checkpoint of random weights that Forge, A1111 and lafr_core load, and a LoRA for it.

``python tiny_checkpoint.py FOLDER [CLIP_VOCABULARY.gz]`` writes ``lafr_tiny.safetensors`` (about 370 MB: the UNet has two of
SD's four levels, at the least width that Forge takes for SD 1.x, the VAE is narrow, the text encoder is CLIP's own size),
``lafr_tiny_lora.safetensors``, and for A1111 ``lafr_tiny.yaml`` and a tokenizer made of CLIP's vocabulary. Forge, its forks and
lafr_core know the VAE's widths by heart: :data:`NARROW` tells the webuis, the test tells lafr_core.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NAME, LORA = "lafr_tiny", "lafr_tiny_lora"
WIDTH, TEXT, LAYERS = 320, 768, 2
ATTENDS = (False, True)
"""Which of the UNet's levels have attention: the finest, where it costs most, has none."""
VAE_WIDTHS = (32, 32, 64, 64)
"""SD's own are 128, 256, 512 and 512."""
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def layer(name: str, out: int, *inside: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, *inside)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Shapes:
    return layer(name, width)


# The UNet of CompVis/stable-diffusion, openaimodel.py


def residual(name: str, inside: int, out: int) -> Shapes:
    yield from norm(f"{name}.in_layers.0", inside)
    yield from layer(f"{name}.in_layers.2", out, inside, 3, 3)
    yield from layer(f"{name}.emb_layers.1", out, 4 * WIDTH)
    yield from norm(f"{name}.out_layers.0", out)
    yield from layer(f"{name}.out_layers.3", out, out, 3, 3)
    if inside != out:
        yield from layer(f"{name}.skip_connection", out, inside, 1, 1)


def transformer(name: str, width: int) -> Shapes:
    yield from norm(f"{name}.norm", width)
    yield from layer(f"{name}.proj_in", width, width, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, text in (("attn1", width), ("attn2", TEXT)):
        yield from layer(f"{block}.{attention}.to_q", width, width, bias=False)
        yield from layer(f"{block}.{attention}.to_k", width, text, bias=False)
        yield from layer(f"{block}.{attention}.to_v", width, text, bias=False)
        yield from layer(f"{block}.{attention}.to_out.0", width, width)
    yield from layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from layer(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        yield from norm(f"{block}.norm{number}", width)
    yield from layer(f"{name}.proj_out", width, width, 1, 1)


def unet() -> Shapes:
    yield from layer("time_embed.0", 4 * WIDTH, WIDTH)
    yield from layer("time_embed.2", 4 * WIDTH, 4 * WIDTH)
    yield from layer("input_blocks.0.0", WIDTH, 4, 3, 3)
    for level, attends in enumerate(ATTENDS):
        first = 1 + level * (LAYERS + 1)
        for number in range(first, first + LAYERS):
            yield from residual(f"input_blocks.{number}.0", WIDTH, WIDTH)
            if attends:
                yield from transformer(f"input_blocks.{number}.1", WIDTH)
        if level < len(ATTENDS) - 1:
            yield from layer(f"input_blocks.{first + LAYERS}.0.op", WIDTH, WIDTH, 3, 3)
    yield from residual("middle_block.0", WIDTH, WIDTH)
    yield from transformer("middle_block.1", WIDTH)
    yield from residual("middle_block.2", WIDTH, WIDTH)
    for number in range(len(ATTENDS) * (LAYERS + 1)):
        attends = ATTENDS[-1 - number // (LAYERS + 1)]
        yield from residual(f"output_blocks.{number}.0", 2 * WIDTH, WIDTH)
        if attends:
            yield from transformer(f"output_blocks.{number}.1", WIDTH)
        if number % (LAYERS + 1) == LAYERS and number < len(ATTENDS) * (LAYERS + 1) - 1:
            yield from layer(f"output_blocks.{number}.{1 + attends}.conv", WIDTH, WIDTH, 3, 3)
    yield from norm("out.0", WIDTH)
    yield from layer("out.2", 4, WIDTH, 3, 3)


# The autoencoder of CompVis/latent-diffusion, model.py


def vae_block(name: str, inside: int, out: int) -> Shapes:
    yield from norm(f"{name}.norm1", inside)
    yield from layer(f"{name}.conv1", out, inside, 3, 3)
    yield from norm(f"{name}.norm2", out)
    yield from layer(f"{name}.conv2", out, out, 3, 3)
    if inside != out:
        yield from layer(f"{name}.nin_shortcut", out, inside, 1, 1)


def vae_middle(name: str, width: int) -> Shapes:
    yield from vae_block(f"{name}.block_1", width, width)
    yield from norm(f"{name}.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.attn_1.{part}", width, width, 1, 1)
    yield from vae_block(f"{name}.block_2", width, width)


def vae() -> Shapes:
    widths, least, most = VAE_WIDTHS, VAE_WIDTHS[0], VAE_WIDTHS[-1]
    yield from layer("encoder.conv_in", least, 3, 3, 3)
    inside = least
    for level, width in enumerate(widths):
        for number in range(2):
            yield from vae_block(f"encoder.down.{level}.block.{number}", inside, width)
            inside = width
        if level < 3:
            yield from layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from vae_middle("encoder.mid", most)
    yield from norm("encoder.norm_out", most)
    yield from layer("encoder.conv_out", 8, most, 3, 3)
    yield from layer("quant_conv", 8, 8, 1, 1)
    yield from layer("post_quant_conv", 4, 4, 1, 1)
    yield from layer("decoder.conv_in", most, 4, 3, 3)
    yield from vae_middle("decoder.mid", most)
    inside = most
    for level, width in reversed(list(enumerate(widths))):
        for number in range(3):
            yield from vae_block(f"decoder.up.{level}.block.{number}", inside, width)
            inside = width
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from norm("decoder.norm_out", least)
    yield from layer("decoder.conv_out", 3, least, 3, 3)


# OpenAI's CLIP ViT-L/14, the text half, in transformers' names


def text() -> Shapes:
    yield "embeddings.token_embedding.weight", (49408, TEXT)
    yield "embeddings.position_embedding.weight", (77, TEXT)
    for number in range(12):
        name = f"encoder.layers.{number}"
        for part in ("q", "k", "v", "out"):
            yield from layer(f"{name}.self_attn.{part}_proj", TEXT, TEXT)
        yield from norm(f"{name}.layer_norm1", TEXT)
        yield from layer(f"{name}.mlp.fc1", 4 * TEXT, TEXT)
        yield from layer(f"{name}.mlp.fc2", TEXT, 4 * TEXT)
        yield from norm(f"{name}.layer_norm2", TEXT)
    yield from norm("final_layer_norm", TEXT)


PARTS = {
    "model.diffusion_model.": unet,
    "first_stage_model.": vae,
    "cond_stage_model.transformer.text_model.": text,
}


def tensors(gray: tuple[float, ...]) -> dict[str, Tensor]:
    """The whole checkpoint, float16. ``gray``: raw latents of a flat gray, by which lafr_core knows SD's VAE from SDXL's."""
    generator, made = torch.Generator().manual_seed(0), {}
    for prefix, shapes in PARTS.items():
        for name, shape in shapes():
            if len(shape) == 1:  # norms pass through, biases are nothing
                value = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
            else:
                fan = 2500 if "embedding" in name else shape[1] * (shape[2] * shape[3] if len(shape) > 2 else 1)
                value = torch.randn(shape, generator=generator) / fan**0.5
            made[prefix + name] = value.half()
    made["first_stage_model.quant_conv.weight"] = (0.5 * torch.eye(8)[:, :, None, None]).half()
    made["first_stage_model.quant_conv.bias"] = torch.tensor([*gray, *([-20.0] * 4)]).half()  # and hardly any spread
    return made


def lora() -> dict[str, Tensor]:
    """A rank 4 LoRA of two attention layers and a convolution, in the names that LAFR's training writes."""
    generator, made = torch.Generator().manual_seed(1), {}
    for path, down, up in (
        ("down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", (4, WIDTH), (WIDTH, 4)),
        ("up_blocks_0_attentions_2_transformer_blocks_0_attn2_to_v", (4, TEXT), (WIDTH, 4)),
        ("mid_block_resnets_0_conv1", (4, WIDTH, 3, 3), (WIDTH, 4, 1, 1)),
    ):
        fan = down[1] * (9 if len(down) > 2 else 1)
        made[f"lora_unet_{path}.lora_down.weight"] = torch.randn(down, generator=generator) / fan**0.5
        made[f"lora_unet_{path}.lora_up.weight"] = torch.randn(up, generator=generator) / 2
        made[f"lora_unet_{path}.alpha"] = torch.tensor(4.0)
    return made


def tokenizer(folder: Path, vocabulary: Path) -> None:
    """What transformers wants of ``openai/clip-vit-large-patch14``: config, and the tokenizer out of OpenAI's own file."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printed] + [chr(256 + n) for n in range(256 - len(printed))]
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    ends = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(ends))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **ends})
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "hidden_size": TEXT,
                "intermediate_size": 4 * TEXT, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408,
                "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": TEXT,
                "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
            }
        )
    )  # fmt: skip


_BACKEND = f"""from backend.nn.vae import IntegratedAutoencoderKL
known = IntegratedAutoencoderKL.load_config
narrow = {{"block_out_channels": {list(VAE_WIDTHS)}}}
IntegratedAutoencoderKL.load_config = classmethod(lambda cls, path, **values: {{**known(path, **values), **narrow}})
"""
_LDM_PATCHED = f"""from ldm_patched.modules import sd
known = sd.AutoencoderKL
narrow = {{"ch": {VAE_WIDTHS[0]}, "ch_mult": {[width // VAE_WIDTHS[0] for width in VAE_WIDTHS]}}}
sd.AutoencoderKL = lambda ddconfig, **values: known(ddconfig={{**ddconfig, **narrow}}, **values)
"""
NARROW = {"forge": _BACKEND, "neo": _BACKEND, "reforge": _LDM_PATCHED, "classic": _LDM_PATCHED}
"""A script of an extension for each webui that knows the VAE's sizes by heart. A1111 reads them from the YAML."""

YAML = """model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: {width}, attention_resolutions: [2],
        num_res_blocks: {layers}, channel_mult: {mult}, num_heads: 8, use_spatial_transformer: True, transformer_depth: 1,
        context_dim: {text}, use_checkpoint: False, legacy: False}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig: {{double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: {least}, ch_mult: {vae},
          num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {{version: "{clip}"}}
"""


def write(folder: Path, gray: tuple[float, ...], vocabulary: Path | None = None) -> None:
    """Checkpoint and LoRA; with CLIP's vocabulary (``bpe_simple_vocab_16e6.txt.gz``) also what A1111 needs beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(gray), folder / f"{NAME}.safetensors")
    save_file(lora(), folder / f"{LORA}.safetensors", metadata={"timestep": "399", "prediction": "epsilon"})
    if vocabulary is not None:
        tokenizer(folder / "clip", vocabulary)
        sizes = {"width": WIDTH, "layers": LAYERS, "mult": [1] * len(ATTENDS), "text": TEXT, "least": VAE_WIDTHS[0]}
        sizes["vae"] = [width // VAE_WIDTHS[0] for width in VAE_WIDTHS]
        (folder / f"{NAME}.yaml").write_text(YAML.format(clip=(folder / "clip").resolve(), **sizes))


def main() -> None:
    from lafr_core.latent.spec import FAMILIES

    spec = FAMILIES["sd"]
    raw = spec.to_raw(torch.tensor(spec.gray))
    write(Path(sys.argv[1]), tuple(raw.tolist()), Path(sys.argv[2]) if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
