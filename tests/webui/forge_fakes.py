"""A tiny ForgeObjects (VAE and UNet) of Forge's own classes on the CPU. Needs FORGE_ROOT."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
from webui_fakes import FORGE_ROOT


def backend() -> None:
    """Make Forge's ``backend`` importable here: it parses ``sys.argv`` and looks for a GPU when it is first imported."""
    if "backend" in sys.modules:
        return
    argv = sys.argv
    sys.modules.setdefault("torchaudio", None)  # type: ignore[arg-type] # a mismatched one breaks `import diffusers`
    sys.path[:0] = [FORGE_ROOT, f"{FORGE_ROOT}/packages_3rdparty"]
    sys.argv = ["webui", "--always-cpu"]
    try:
        if (
            importlib.util.find_spec("sentencepiece") is None
        ):  # Forge's gguf names its tokenizer on import, and needs it for LLMs only
            stand_in = types.ModuleType("sentencepiece")
            stand_in.SentencePieceProcessor = None  # type: ignore[attr-defined]
            sys.modules["sentencepiece"] = stand_in
            import gguf  # noqa: F401

            del sys.modules["sentencepiece"]  # diffusers would take it for the package
        import backend.diffusion_engine.base
        import backend.modules.k_model
        import backend.nn.unet
        import backend.nn.vae
        import backend.patcher.unet
        import backend.patcher.vae
        import backend.sampling.sampling_function  # noqa: F401
    finally:
        sys.argv = argv


def sd_model(prediction: str = "epsilon", in_channels: int = 4, latent_channels: int = 4, scale: float = 0.18215) -> Any:
    """What ``forge_model_reload`` gives: loaded under inference mode, so every weight is an inference tensor."""
    backend()
    from backend import memory_management
    from backend.diffusion_engine.base import ForgeObjects
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import IntegratedAutoencoderKL
    from backend.patcher.unet import UnetPatcher
    from backend.patcher.vae import VAE
    from diffusers import EulerDiscreteScheduler

    torch.manual_seed(0)
    with torch.inference_mode():
        network = IntegratedAutoencoderKL(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=latent_channels,
            scaling_factor=scale,
        )
        unet = IntegratedUNet2DConditionModel(
            in_channels=in_channels,
            model_channels=32,
            out_channels=4,
            num_res_blocks=[1, 1],
            channel_mult=(1, 2),
            num_heads=4,
            use_spatial_transformer=True,
            transformer_depth=[1, 1],
            transformer_depth_output=[1, 1, 1, 1],
            transformer_depth_middle=1,
            context_dim=16,
        )
        for parameter in unet.out.parameters():  # the last layer starts at zero and would predict nothing
            parameter.normal_(std=0.1)
        vae = VAE(network)
        unet.storage_dtype = unet.computation_dtype = torch.float32
        unet.load_device = unet.initial_device = memory_management.get_torch_device()
        unet.offload_device = memory_management.unet_offload_device()
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
        )
        patcher = UnetPatcher.from_model(
            unet, diffusers_scheduler=scheduler, config=types.SimpleNamespace(unet_config={}, huggingface_repo="sd")
        )
        context = torch.randn(1, 77, 16)
    objects = ForgeObjects(unet=patcher, clip=None, vae=vae, clipvision=None)
    return types.SimpleNamespace(
        forge_objects=objects,
        forge_objects_original=objects.shallow_copy(),
        first_stage_model=None,
        get_learned_conditioning=lambda prompts: context.expand(len(prompts), -1, -1),
    )


class FakeInitialModel:
    """What ``shared.sd_model`` is in Forge before anything was generated."""

    cond_stage_model = None


class SdModels:
    """``modules.sd_models`` of Forge as far as loading goes: the checkpoint arrives on the first reload, again when
    parameters change.
    """

    def __init__(self, build: Any, available: bool = True) -> None:
        self.build, self.available, self.loads = build, available, 0
        self.model_data = types.SimpleNamespace(sd_model=FakeInitialModel(), forge_loading_parameters={}, forge_hash="")

    def forge_model_reload(self) -> tuple[Any, bool]:
        data = self.model_data
        if data.forge_hash == str(data.forge_loading_parameters):
            return data.sd_model, False
        if data.forge_loading_parameters["checkpoint_info"] is None:
            raise ValueError("You do not have any model!")
        data.sd_model, data.forge_hash = self.build(), str(data.forge_loading_parameters)
        self.loads += 1
        return data.sd_model, True

    def refresh(self) -> None:
        self.model_data.forge_loading_parameters = {"checkpoint_info": "tiny" if self.available else None}
