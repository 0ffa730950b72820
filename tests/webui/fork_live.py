"""LAFR's adapter on a fork's own VAE, UNet, LoRA and memory code, with tiny random networks on the CPU.

``python fork_live.py neo|reforge|classic ROOT``: one process a fork, because their modules bear the same names. Raises where
something is not as it should be; prints one line at the end.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

KIND, ROOT = sys.argv[1], sys.argv[2]
UNET = {
    "in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1, 1], "channel_mult": (1, 2), "num_heads": 4,
    "use_spatial_transformer": True, "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 16,
}  # fmt: skip


def neo() -> tuple[Any, Any]:
    """(vae, unet patcher) of Forge Neo, as its SD 1.5 engine makes them."""
    from backend import args, memory_management

    args.dynamic_args.ops = "default"  # its loader sets this
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import IntegratedAutoencoderKL
    from backend.patcher.unet import UnetPatcher
    from backend.patcher.vae import VAE
    from diffusers import EulerDiscreteScheduler

    network = IntegratedAutoencoderKL(block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4)
    # modules_forge.packages.huggingface_guess gives the engine this object, whose two lines these are
    network.latent_format = types.SimpleNamespace(
        scale_factor=0.18215, process_in=lambda z: z * 0.18215, process_out=lambda z: z / 0.18215
    )
    unet = IntegratedUNet2DConditionModel(**UNET)
    unet.storage_dtype = unet.computation_dtype = torch.float32
    unet.load_device = unet.initial_device = memory_management.get_torch_device()
    unet.offload_device = memory_management.unet_offload_device()
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    patcher = UnetPatcher.from_model(
        unet,
        diffusers_scheduler=scheduler,
        config=types.SimpleNamespace(unet_config={}, huggingface_repo="sd", memory_usage_factor=1.0),
    )
    return VAE(network), patcher


def comfy() -> tuple[Any, Any]:
    """(vae, unet patcher) of reForge and Classic, as their loader makes them."""
    from ldm_patched.modules import args_parser

    args_parser.args.always_cpu = True  # the webui's own initialization hands its switches on like this
    from ldm_patched.modules import model_management, sd, supported_models
    from modules_forge.unet_patcher import UnetPatcher

    shape = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "attn_resolutions": [],
    }
    params = {"ddconfig": {**shape, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "dropout": 0.0}, "embed_dim": 4}
    vae = sd.VAE(sd={}, config={"params": params}, dtype=torch.float32)
    config = supported_models.SD15({**UNET, "image_size": 32, "adm_in_channels": None, "use_linear_in_transformer": False})
    if hasattr(config, "set_inference_dtype"):
        config.set_inference_dtype(torch.float32, None)
    config.unet_config["dtype"] = torch.float32
    model = config.get_model({}, "", device=torch.device("cpu"))
    device = model_management.get_torch_device()
    return vae, UnetPatcher(model, load_device=device, offload_device=model_management.unet_offload_device())


def lora_module(unet: Any, folder: Path) -> tuple[str, types.ModuleType]:
    """A LoRA file that fits ``unet``, and the part of the fork's ``networks`` module that hands it out."""
    if KIND == "neo":
        from backend.patcher.lora import load_lora, model_lora_keys_unet

        def load_lora_for_models(unet, clip, tensors, strength, clip_strength, filename="default", online_mode=False):
            patches, _ = load_lora(tensors, model_lora_keys_unet(unet.model))  # the lines of its sd_forge_lora extension
            new = unet.clone()
            new.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=online_mode)
            return (new if patches else unet), clip

    else:
        from ldm_patched.modules.lora import model_lora_keys_unet
        from ldm_patched.modules.sd import load_lora_for_models
    from safetensors.torch import save_file

    keys = model_lora_keys_unet(unet.model, {})
    name = next(key for key in keys if key.startswith("lora_unet_") and "to_q" in key)
    weight = dict(unet.model.named_parameters())[keys[name]]
    path = folder / "lafr_prior.safetensors"
    parts = {"lora_down.weight": torch.randn(2, weight.shape[1]), "lora_up.weight": torch.randn(weight.shape[0], 2)}
    save_file({f"{name}.{part}": value for part, value in parts.items()} | {f"{name}.alpha": torch.tensor(2.0)}, path)
    networks = types.ModuleType("networks")
    networks.available_network_aliases = {"lafr_prior": types.SimpleNamespace(filename=str(path))}
    networks.list_available_networks = lambda: None
    networks.load_lora_for_models = load_lora_for_models
    return "lafr_prior", networks


def host_modules() -> tuple[types.ModuleType, types.ModuleType]:
    """The webui around it as far as its model code and LAFR look at it: ``modules.sd_models`` and ``modules.shared``."""
    modules, shared = types.ModuleType("modules"), types.ModuleType("modules.shared")
    sd_models = types.ModuleType("modules.sd_models")

    class Opts:
        def __getattr__(self, name: str) -> None:
            return None  # every switch off

    shared.opts, shared.cmd_opts = Opts(), Opts()
    modules.sd_models, modules.shared, modules.__path__ = sd_models, shared, [str(Path(ROOT, "modules"))]
    sys.modules |= {"modules": modules, "modules.sd_models": sd_models, "modules.shared": shared}
    return sd_models, shared


def main() -> None:
    from lafr_core.latent import prediction
    from lafr_webui import forge, loaded

    sd_models, shared = host_modules()
    torch.manual_seed(0)
    with torch.inference_mode():
        vae, unet = neo() if KIND == "neo" else comfy()
        for parameter in [*vae.first_stage_model.parameters(), *unet.model.diffusion_model.parameters()]:
            parameter.copy_(
                torch.randn_like(parameter) * (0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.02)
            )
        for module in [*vae.first_stage_model.modules(), *unet.model.diffusion_model.modules()]:
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and module.weight is not None:
                module.weight.fill_(1.0)
    context = torch.randn(1, 77, 16)
    objects = types.SimpleNamespace(vae=vae, unet=unet)
    sd_model = types.SimpleNamespace(
        forge_objects=objects, forge_objects_original=objects, get_learned_conditioning=lambda texts: context
    )
    shared.sd_model = sd_model
    if KIND == "neo":
        sd_models.model_data = types.SimpleNamespace(forge_loading_parameters={"checkpoint_info": "tiny"})
        sd_models.forge_model_reload = lambda: (sd_model, False)

    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad(), loaded.checkpoint() as checkpoint:
        assert isinstance(checkpoint.vae, forge.ForgeVae) and isinstance(checkpoint.denoiser, forge.ForgeDenoiser)
        first = checkpoint.vae.encode(pixels)
        assert torch.equal(first, checkpoint.vae.encode(pixels)), "encoding draws a sample"
        network = vae.first_stage_model
        with torch.inference_mode():
            raw = network.quant_conv(network.encoder(pixels * 2 - 1))[:, :4]
            host = vae.decode(raw).movedim(-1, 1)
            draws = [vae.encode(pixels.movedim(1, -1)) for _ in range(2)]
        # reForge asks its regularizer for the mode by now; the others draw a sample.
        assert torch.equal(*draws) == (KIND == "reforge"), "the host changed how it encodes"
        assert torch.allclose(first, raw * 0.18215, atol=1e-5)
        decoded = checkpoint.vae.decode(first)
        assert torch.allclose(decoded, host, atol=1e-4) and decoded.std() > 1e-3 and not decoded.is_inference()
        x = torch.randn(2, 4, 8, 8)
        for timestep in (1, 399, 998):
            alpha = float(prediction.alphas_cumprod()[timestep])
            assert abs(checkpoint.denoiser.alpha(timestep) - alpha) < 1e-3 * alpha
            with torch.inference_mode():
                times = torch.full((2,), float(timestep))
                eps = unet.model.diffusion_model(x, times, context=context.expand(2, -1, -1), transformer_options={}).clone()
            expected = prediction.to_sample(eps, x, alpha, "epsilon")
            difference = (checkpoint.denoiser(x, timestep) - expected).abs().max() / expected.abs().max()
            assert difference < 1e-3, f"timestep {timestep}: {difference}"
        plain = checkpoint.denoiser(x, 399)

    with tempfile.TemporaryDirectory() as folder:
        name, networks = lora_module(unet, Path(folder))
        sys.modules["networks"] = networks
        with torch.no_grad(), loaded.checkpoint(name) as checkpoint:
            assert not torch.allclose(checkpoint.denoiser(x, 399), plain, atol=1e-5), "the LoRA changed nothing"
        with torch.no_grad(), loaded.checkpoint() as checkpoint:
            assert torch.allclose(checkpoint.denoiser(x, 399), plain, atol=1e-6), "the LoRA stayed on"
    print(f"{KIND}: encode, decode, denoise and LoRA as they should be")


if __name__ == "__main__":
    sys.path[:0] = [ROOT, str(Path(ROOT, "modules_forge", "packages")), str(Path(__file__).parents[2])]
    sys.argv = ["webui", "--cpu" if KIND == "neo" else "--always-cpu"]
    for name in ("torchaudio", "xformers"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type] # a mismatched one breaks `import diffusers`
    importlib.import_module("lafr_core")
    main()
