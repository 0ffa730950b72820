"""The exported LoRA in foreign hands: stock ComfyUI's own loader and a diffusers pipeline give our own network's output.

The UNet has SD 1.x's layout (four levels, two blocks each, eight heads) with few channels, so every module that a real
checkpoint has is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_tiny import settings, unet_folder

from lafr_core.latent.sd_prior import load_context, open_sd_prior
from train.engine import parts, run
from train.tasks import adapter, codebook, prior
from train.tools.export import export

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
TIMESTEP = 250
SD15 = {  # runwayml/stable-diffusion-v1-5, unet/config.json, but for channels and text width
    "block_out_channels": (32, 64, 64, 64), "layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """The files of a trained LoRA, latents to try it on, and what the training network and the bare UNet make of them."""

    unet: Path
    files: Path
    latents: Tensor
    context: Tensor
    wanted: Tensor
    plain: Tensor


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("hosts")
    unet = unet_folder(folder / "unet", **SD15)
    # An alpha unlike the rank of 4: a loader that forgets it shows.
    conf = settings(
        folder, "run", **{"models.unet": unet, "codebook.steps": 1, "adapter.steps": 1, "prior.steps": 3, "prior.lr": 1e-2,
                          "prior.warmup": 1, "prior.timestep": TIMESTEP, "prior.ema": 0.1, "prior.alpha": 8},
    )  # fmt: skip
    for task in (codebook.CodebookTask, adapter.AdapterTask, prior.PriorTask):
        run.run(task, conf)
    export(Path(conf.log.out), "prior", folder / "out")
    live = parts.lora_prior(conf, torch.device("cpu"))
    z = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    context = load_context(folder / "out" / "empty_prompt.safetensors").expand(2, -1, -1).contiguous()
    with torch.no_grad():
        plain = live.unet(z, TIMESTEP, context).sample  # a new LoRA changes nothing
        live.load_state_dict(parts.averaged(parts.checkpoints.open_checkpoint(conf.log.out, "prior")[2]), strict=False)
        wanted = live.unet(z, TIMESTEP, context).sample
    return Exported(unet, folder / "out", z, context, wanted, plain)


def check(exported: Exported, output: Tensor) -> None:
    """``output`` is the LoRA's, up to the file's fp16, by far nearer than to the bare UNet's."""
    torch.testing.assert_close(output, exported.wanted, atol=2e-3, rtol=2e-3)
    effect = float((exported.wanted - exported.plain).abs().mean())
    assert float((output - exported.wanted).abs().mean()) < 0.01 * effect


def test_our_own_loader(exported: Exported) -> None:
    opened = open_sd_prior(exported.unet, lora=exported.files / "lafr_lora.safetensors")
    assert opened.timestep == TIMESTEP
    with torch.no_grad():
        check(exported, opened.network(exported.latents))


@pytest.mark.parametrize("name", ["lafr_lora.safetensors", "lafr_lora_diffusers.safetensors"])
def test_diffusers_pipeline_loads_both_files(exported: Exported, name: str) -> None:
    """``load_lora_weights`` reads kohya's names too, alpha included."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(exported.unet), use_safetensors=True)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_lora_weights(str(exported.files), weight_name=name)
    with torch.no_grad():
        check(exported, pipeline.unet(exported.latents, TIMESTEP, exported.context).sample)


COMFY = """
import logging, sys
from pathlib import Path
sys.modules.setdefault("torchaudio", None)
root, work = sys.argv[1:]
sys.path.insert(0, root)
from comfy.cli_args import args
args.cpu, args.base_directory = True, work
import torch
from safetensors.torch import load_file, save_file
import comfy.lora, comfy.model_management as mm, comfy.model_patcher, comfy.supported_models, comfy.utils, folder_paths, nodes

records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger().addHandler(Keep())

given = load_file(work + "/given.safetensors")
config = comfy.supported_models.SD15({
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3, "channel_mult": [1, 2, 2, 2],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": given["context"].shape[-1],
    "use_temporal_resblock": False, "use_temporal_attention": False,
})
config.set_inference_dtype(torch.float32, None)
model = config.get_model({}, "", device=mm.unet_offload_device())
theirs = comfy.utils.unet_to_diffusers(config.unet_config)
tensors = load_file(work + "/unet.safetensors")
model.diffusion_model.load_state_dict({theirs[name]: t for name, t in tensors.items()}, strict=True)
patcher = comfy.model_patcher.ModelPatcher(model.eval(), mm.get_torch_device(), mm.unet_offload_device())

folder_paths.add_model_folder_path("loras", work)
(patched,) = nodes.LoraLoaderModelOnly().load_lora_model_only(patcher, "lafr_lora.safetensors", 1.0)
mm.load_models_gpu([patched])
t = torch.full((len(given["latents"]),), float(given["timestep"]))
with torch.no_grad():
    output = patched.model.diffusion_model(given["latents"], t, context=given["context"])
save_file({"output": output.float().contiguous()}, work + "/output.safetensors")
Path(work, "patched.txt").write_text("\\n".join(sorted(patched.patches)))
Path(work, "log.txt").write_text("\\n".join(records))
"""


def test_stock_comfyui_patches_every_key_and_gives_the_same_output(exported: Exported, tmp_path: Path) -> None:
    root = os.environ.get("COMFYUI_ROOT")
    if not root:
        pytest.skip("COMFYUI_ROOT is not set: needs a ComfyUI checkout (COMFYUI_PYTHON: its interpreter)")
    lora = exported.files / "lafr_lora.safetensors"
    (tmp_path / "lafr_lora.safetensors").write_bytes(lora.read_bytes())
    save_file(load_file(str(exported.unet / "diffusion_pytorch_model.safetensors")), str(tmp_path / "unet.safetensors"))
    given = {"latents": exported.latents, "context": exported.context, "timestep": torch.tensor(TIMESTEP)}
    save_file(given, str(tmp_path / "given.safetensors"))
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", COMFY, root, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    log = (tmp_path / "log.txt").read_text()
    assert "not loaded" not in log.lower(), log
    names = {name.rsplit(".lora_", 1)[0] for name in load_file(str(lora)) if ".lora_" in name}
    assert len((tmp_path / "patched.txt").read_text().split()) == len(names)
    check(exported, load_file(str(tmp_path / "output.safetensors"))["output"])
