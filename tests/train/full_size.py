"""The chain from one Stable Diffusion 1.5 file to a restored photo, at full size, with random weights: seconds and memory.

    python tests/train/full_size.py OUT --faces FACES [--only NAME ...]

Writes a random checkpoint of SD 1.5's sizes (UNet, VAE, text encoder in one fp16 file, original names), stores latents, trains
codebook, adapter and LoRA for one step of ``train/configs/sd15_ffhq0.9.yaml`` at batch 1, exports, and restores a photo in both
modes; then our loader, diffusers and, with COMFYUI_ROOT and COMFYUI_PYTHON, ComfyUI are given the files, and their UNets'
outputs compared. Each part leaves ``NAME.json`` in OUT and is not repeated. Minutes of a free core, 7 GB of memory.
What comes out of random weights is noise: this shows that the sizes fit, not that the picture is good.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CELLS, TIMESTEP = 16, 399
"""The loaders are compared on latents of so many cells, at the LoRA's timestep."""


# --- the file --------------------------------------------------------------------------------------------------------


def drawn(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """fp16 tensors that neither explode nor vanish: weights by fan-in, norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            made[name] = torch.full(shape, float(name.endswith("weight"))).half()
        else:
            made[name] = (torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))).half()
    return made


def original_vae_name(name: str) -> str:
    """A diffusers VAE tensor name in the original code's words."""
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{3 - int(m[1])}", name).replace("down_blocks", "down")
    for new, old in (
        ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"), ("resnets", "block"), ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name


def checkpoint(path: Path) -> None:
    """A whole SD 1.5 checkpoint of random weights, as one finds them: fp16, original names, one file."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from test_single_file import SIZES, original_name, text_tensors
    from transformers import CLIPTextConfig, CLIPTextModel

    from lafr_core.latent.vae import _SD_VAE, _diffusers_name

    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **SIZES["sd15"])
        vae = AutoencoderKL(**_SD_VAE)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **clip))
    shapes = {f"model.diffusion_model.{original_name(name)}": t.shape for name, t in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        old = original_vae_name(name)
        assert _diffusers_name(old) == name, old
        linear = ".mid.attn_1." in old and tensor.ndim == 2
        shapes[f"first_stage_model.{old}"] = torch.Size([*tensor.shape, 1, 1]) if linear else tensor.shape
    shapes |= {name: t.shape for name, t in text_tensors(text).items()}
    tensors = drawn(shapes, seed=0)
    part = path.with_suffix(".part")
    save_file(tensors, str(part))
    part.rename(path)


# --- the loaders -----------------------------------------------------------------------------------------------------


def given(context: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and the empty prompt."""
    return torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1)), context


def ours(file: Path, lora: Path, out: Path) -> None:
    """Our own UNet with the LoRA merged, and without it: what the others are held against."""
    from lafr_core.latent import lora as loras
    from lafr_core.latent.sd_prior import find_context, load_unet

    z, context = given(find_context(file, lora=lora))
    unet: Any = load_unet(file)
    with torch.no_grad():
        plain = unet(z, TIMESTEP, context).sample
        loras.merge(unet, loras.load_lora(lora))
        wanted = unet(z, TIMESTEP, context).sample
    save_file({"latents": z, "context": context, "plain": plain, "wanted": wanted}, str(out))


def in_diffusers(file: Path, lora: Path, wanted: Path) -> dict[str, float]:
    """diffusers' own reader of single files, with SD 1.5's config from a folder (it would fetch that), and its LoRA loader."""
    import diffusers
    from test_single_file import SIZES

    with torch.device("meta"):
        diffusers.UNet2DConditionModel(sample_size=64, **SIZES["sd15"]).save_config(str(wanted.parent / "sd15_config"))
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(file), config=str(wanted.parent / "sd15_config"), local_files_only=True, torch_dtype=torch.float32
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    asked = load_file(str(wanted))
    with torch.no_grad():
        return apart(pipeline.unet(asked["latents"], TIMESTEP, asked["context"]).sample, asked)


COMFY = """
import sys
sys.modules.setdefault("torchaudio", None)
root, work, file, lora = sys.argv[1:]
sys.path.insert(0, root)
from comfy.cli_args import args
args.cpu, args.base_directory = True, work
import torch
from safetensors.torch import load_file, save_file
import comfy.model_management as mm, comfy.sd, comfy.utils
model = comfy.sd.load_checkpoint_guess_config(file, output_vae=False, output_clip=False)[0]
patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(lora, safe_load=True), 1.0, 0)
asked = load_file(work + "/wanted.safetensors")
mm.load_models_gpu([patched])
with torch.no_grad():
    z = asked["latents"].to(patched.model.get_dtype())
    output = patched.model.diffusion_model(z, torch.full((1,), 399.0), context=asked["context"].to(z))
found = {"output": output.float().contiguous(), "patches": torch.tensor(len(patched.patches))}
save_file(found, work + "/comfy.safetensors")
"""


def apart(output: Tensor, asked: Mapping[str, Tensor]) -> dict[str, float]:
    """How far an output is from ours, as a share of what the LoRA changes at all."""
    effect = float((asked["wanted"] - asked["plain"]).abs().mean())
    return {"difference": float((output - asked["wanted"]).abs().mean()), "effect_of_the_lora": effect}


# --- the chain -------------------------------------------------------------------------------------------------------


def commands(out: Path, faces: Path) -> dict[str, list[str]]:
    """Every part by name: a command of its own process, so that its memory is its own."""
    python, me = sys.executable, str(Path(__file__).resolve())
    file, lora = str(out / "sd15_random.safetensors"), str(out / "models" / "lafr_lora.safetensors")
    train = [python, "-m", "train"]
    off = [f"--loss.{name}=0" for name in ("perceptual", "identity", "structure_landmarks", "structure_parsing")]
    common = [
        "--config", "train/configs/sd15_ffhq0.9.yaml", "--data.source", str(faces), "--data.pairs", str(out / "pairs"),
        "--data.workers=0", "--data.subset=0.001", "--models.vae", file, "--models.unet", file, "--log.out", str(out / "run"),
        "--log.tracker=none", "--log.plots=false", *off, "--pairs.versions=1", "--pairs.precision=no",
    ]  # fmt: skip
    stage = lambda name, *more: [
        *train,
        name,
        *common,
        f"--{name}.steps=1",
        f"--{name}.batch=1",
        f"--{name}.precision=no",
        *more,
    ]
    export = lambda name: [*train, "export", "--checkpoint", str(out / "run"), "--stage", name, "--out", str(out / "models")]
    restore = [
        python, "-m", "lafr_core", "restore", str(out / "photo.png"), "--checkpoint", file, "--adapter",
        str(out / "models" / "adapter.safetensors"), "--device", "cpu", "--overwrite",
    ]  # fmt: skip
    return {
        "checkpoint": [python, me, str(out), "--part", "checkpoint"],
        "pairs": [*train, "pairs", *common],
        "codebook": stage("codebook", "--codebook.kmeans_at=[]", "--data.window=16"),
        "adapter": stage("adapter", "--data.window=16"),
        "prior": stage("prior", "--prior.accumulate=1", "--data.window=16"),
        "export_adapter": export("adapter"),
        "export_prior": export("prior"),
        "one_step": [*restore, "-o", str(out / "one"), "--lora", lora, "--vae", file],
        "few_step": [*restore, "-o", str(out / "few"), "--steps", "2"],
        "ours": [python, me, str(out), "--part", "ours"],
        "diffusers": [python, me, str(out), "--part", "diffusers"],
        "comfyui": [python, me, str(out), "--part", "comfyui"],
    }


def part(name: str, out: Path) -> None:
    """What this file does itself, in the process that was started for it."""
    file, lora = out / "sd15_random.safetensors", out / "models" / "lafr_lora.safetensors"
    wanted = out / "wanted.safetensors"
    found: dict[str, float] = {}
    if name == "checkpoint":
        from PIL import Image

        from lafr_core.store import assets

        checkpoint(file)
        Image.open(assets.sample("portrait")).convert("RGB").resize((384, 384)).save(out / "photo.png")
    elif name == "ours":
        ours(file, lora, wanted)
    elif name == "diffusers":
        found = in_diffusers(file, lora, wanted)
    elif name == "comfyui":
        root = os.environ["COMFYUI_ROOT"]
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        given = [python, "-c", COMFY, root, str(out), str(file), str(lora)]
        subprocess.run(given, cwd=root, check=True, env={**os.environ, "PYTHONPATH": ""})
        answer = load_file(str(out / "comfy.safetensors"))
        names = {key.rsplit(".lora_", 1)[0] for key in load_file(str(lora)) if ".lora_" in key}
        found = {**apart(answer["output"], load_file(str(wanted))), "patches": int(answer["patches"]), "modules": len(names)}
    (out / f"{name}_found.json").write_text(json.dumps(found))


def timed(name: str, command: list[str], out: Path) -> None:
    """Run one part; its wall and processor seconds and peak resident memory go to ``NAME.json``."""
    started = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "ACCELERATE_USE_CPU": "1"})
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{name}: ended with {process.returncode}; see {out / name}.log")
    row = {"seconds": time.monotonic() - started, "cpu": used.ru_utime + used.ru_stime, "peak_gib": used.ru_maxrss / 2**20}
    extra = out / f"{name}_found.json"
    row |= json.loads(extra.read_text()) if extra.is_file() else {}
    (out / f"{name}.json").write_text(json.dumps(row))
    print(name, row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--faces", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    if args.part:
        part(args.part, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, command in commands(out, args.faces.resolve()).items():
        wanted = not args.only or name in args.only
        if name == "comfyui" and "COMFYUI_ROOT" not in os.environ:
            continue
        if wanted and not (out / f"{name}.json").is_file():
            timed(name, command, out)


if __name__ == "__main__":
    main()
