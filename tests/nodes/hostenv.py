"""ComfyUI for tests: its modules in this process, tiny real models, a headless server, graphs run over its API."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
SHARED_WEIGHTS = Path(os.environ.get("LAFR_SHARED", ROOT.parent / "shared")) / "weights"
"""TAESD's files, for tests only; those that need them skip without."""


def missing_requirements() -> str:
    needed = ("av", "alembic", "aiohttp", "torchsde", "transformers", "kornia", "spandrel", "pydantic_settings")
    return ", ".join(name for name in needed if importlib.util.find_spec(name) is None)


@dataclass
class Host:
    root: Path
    base: Path
    nodes: Any
    """The pack's ``nodes`` package."""

    def core(self, name: str) -> Any:
        """A module of the pack's own ``lafr_core``."""
        return importlib.import_module(f"lafr_pack.lafr_core.{name}")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"lafr_pack.nodes.{name}")


def boot(root: Path, base: Path) -> Host:
    """Import ComfyUI on the CPU; load the pack under a legal name. The host goes first on sys.path: we have ``nodes`` too."""
    ensure_torchaudio()
    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name == "nodes" or name.startswith("nodes.")]:
        del sys.modules[name]
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(base)
    spec = importlib.util.spec_from_file_location("lafr_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["lafr_pack"] = pack
    spec.loader.exec_module(pack)
    nodes = importlib.import_module("lafr_pack.nodes")
    nodes.register_folder()
    return Host(root, base, nodes)


def ensure_torchaudio() -> None:
    """Image work calls none of it, but ComfyUI 0.33 imports it: put the stand-in where there is none, or one that fails."""
    try:
        import torchaudio  # noqa: F401
    except Exception:
        spec = importlib.util.spec_from_file_location("torchaudio", Path(__file__).with_name("torchaudio_stub.py"))
        assert spec is not None and spec.loader is not None
        stub = importlib.util.module_from_spec(spec)
        stub.__path__ = []
        sys.modules["torchaudio"] = stub
        spec.loader.exec_module(stub)


def python_of(root: Path) -> str:
    """The interpreter of one of COMFYUI_ROOT's checkouts: the one at its place in COMFYUI_PYTHON, else this one."""
    pythons = [one for one in os.environ.get("COMFYUI_PYTHON", "").split(os.pathsep) if one]
    number = roots().index(root) if root in roots() else 0
    return pythons[number] if number < len(pythons) else sys.executable


def roots() -> list[Path]:
    """The checkouts that COMFYUI_ROOT names, separated as in PATH."""
    return [Path(one) for one in os.environ.get("COMFYUI_ROOT", "").split(os.pathsep) if one]


def tiny_model(seed: int = 0, v_prediction: bool = False) -> Any:
    """A real MODEL with a random UNet of a million parameters, in SD 1.5's latent format, text width 16."""
    import comfy.model_base
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        {
            "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
            "adm_in_channels": None, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "channel_mult": [1, 2],
            "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": 16,
            "use_temporal_resblock": False, "use_temporal_attention": False,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    if v_prediction:
        config.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    model = config.get_model({}, "", device=mm.unet_offload_device())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # the host's layers are allocated, not initialised
        for name, p in model.diffusion_model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


def taesd(kind: str = "taesd", scale: float = 0.18215, shift: float = 0.0) -> Any:
    """A comfy VAE of the TAESD family."""
    import comfy.sd
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for half in ("encoder", "decoder"):
        file = SHARED_WEIGHTS / f"{kind}_{half}.safetensors"
        tensors.update({f"taesd_{half}.{name}": tensor for name, tensor in load_file(str(file)).items()})
    tensors["vae_scale"], tensors["vae_shift"] = torch.tensor(scale), torch.tensor(shift)
    return comfy.sd.VAE(sd=tensors)


MAKE_CHECKPOINT = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
import hostenv
hostenv.ensure_torchaudio()
from comfy.cli_args import args
args.cpu = True
import comfy.ops, comfy.sd1_clip, comfy.supported_models as supported
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file
config = dict(use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, adm_in_channels=None,
    in_channels=4, out_channels=4, model_channels=320, use_temporal_resblock=False, use_temporal_attention=False,
    context_dim=768,
    use_linear_in_transformer=False, num_res_blocks=[1, 1, 1],
    transformer_depth=[0, 0, 1],
    transformer_depth_output=[0, 0, 0, 0, 1, 1], channel_mult=[1, 1, 1], transformer_depth_middle=-1)
config = {{**config, **supported.SD15.unet_extra_config}}
unet = UNetModel(**config, dtype=torch.float16, device="cpu", operations=comfy.ops.disable_weight_init)
text = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float16, model_options={{}})
generator = torch.Generator().manual_seed(0)
def fill(name, t):
    if not t.is_floating_point():
        return t.clone()
    if t.ndim < 2:
        return torch.full_like(t, float(name.endswith("weight"))).half()
    return (torch.randn(t.shape, generator=generator) * (0.02 if name.startswith("cond") else t[0].numel() ** -0.5)).half()
tensors = {{"model.diffusion_model." + k: fill(k, v) for k, v in unet.state_dict().items()}}
for k, v in text.state_dict().items():
    if k.startswith("clip_l.transformer.text_model"):
        name = k.replace("clip_l.", "cond_stage_model.")
        tensors[name] = fill(name, v)
for half in ("encoder", "decoder"):
    for k, v in load_file({weights!r} + "/taesd_" + half + ".safetensors").items():
        tensors["first_stage_model.taesd_" + half + "." + k] = v
tensors["first_stage_model.vae_scale"], tensors["first_stage_model.vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
save_file(tensors, {out!r})
"""


def make_checkpoint(root: Path, out: Path) -> None:
    """A file CheckpointLoaderSimple opens as SD 1.5: small random UNet, random CLIP, TAESD as its VAE. 340 MB, made once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if _made and _made[0].is_file():
        out.hardlink_to(_made[0])
        return
    code = MAKE_CHECKPOINT.format(root=str(root), tests=str(Path(__file__).parent), weights=str(SHARED_WEIGHTS), out=str(out))
    subprocess.run([python_of(root), "-c", code], check=True)
    _made[:] = [out]


_made: list[Path] = []
"""The checkpoint that this run has made: every host reads the same."""


class Address(str):
    """A server's address; ``pid`` is its process."""

    pid: int


@contextmanager
def server(root: Path, base: Path) -> Iterator[Address]:
    """ComfyUI without a window, its folders in ``base``; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python_of(root), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    log = (base / "server.log").open("w")
    process = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT)
    address = Address(f"http://127.0.0.1:{port}")
    address.pid = process.pid
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise RuntimeError("the server ended: " + (base / "server.log").read_text()[-2000:])
            try:
                get(address, "/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def get(address: str, path: str) -> Any:
    with urllib.request.urlopen(address + path, timeout=60) as answer:
        return json.load(answer)


def post(address: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def run_graph(address: str, graph: dict[str, Any], timeout: float = 900.0) -> dict[str, Any]:
    """Queue an API graph and wait for its history entry."""
    try:
        queued = post(address, "/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})
    except urllib.error.HTTPError as error:
        raise AssertionError(f"refused: {error.read().decode()[:2000]}") from error
    return wait(address, queued["prompt_id"], timeout)


def wait(address: str, prompt: str, timeout: float) -> dict[str, Any]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        history = get(address, f"/history/{prompt}")
        if prompt in history and history[prompt].get("status", {}).get("status_str"):
            return history[prompt]
        time.sleep(0.25)
    raise AssertionError(f"no result within {timeout} s")


def is_widget(kind: Any, extra: dict[str, Any]) -> bool:
    """Whether an input of object_info is a widget with a value, and no socket."""
    return (isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")) and not extra.get("forceInput")


def untouched(info: dict[str, Any]) -> dict[str, Any]:
    """What a node of this object_info entry sends when nobody has touched it: its widgets at their defaults, nothing else."""
    sent = {}
    for inputs in info["input"].values():
        for name, (kind, *more) in inputs.items():
            extra = more[0] if more else {}
            if is_widget(kind, extra):
                choices = kind if isinstance(kind, list) else extra.get("options", [None])
                sent[name] = extra.get("default", choices[0])
    return sent


DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""Newer hosts' combo whose choice brings inputs of its own."""


def fill(name: str, extra: dict[str, Any], values: list[Any], inputs: dict[str, Any]) -> None:
    """Take a dynamic combo's choice, and what the choice brings along, from a saved node's ``values``."""
    inputs[name] = values.pop(0) if values else extra["options"][0]["key"]
    (choice,) = [option for option in extra["options"] if option["key"] == inputs[name]]
    for inner, (kind, more) in choice["inputs"].get("required", {}).items():
        if kind == DYNAMIC:
            fill(f"{name}.{inner}", more, values, inputs)


def to_graph(address: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """A saved (UI) workflow as the API graph the frontend would send."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        info = get(address, f"/object_info/{node['type']}")[node["type"]]
        spec = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        order = [name for kind in ("required", "optional") for name in info["input_order"].get(kind, [])]
        values, inputs = list(node.get("widgets_values", [])), {}
        for name in order:
            kind, extra = spec[name][0], (spec[name][1] if len(spec[name]) > 1 else {})
            if kind == DYNAMIC:
                fill(name, extra, values, inputs)
            elif is_widget(kind, extra):
                # A newer host's node may have widgets more than the file knows.
                inputs[name] = values.pop(0) if values else extra["default"]
                if extra.get("control_after_generate") or extra.get("image_upload"):
                    values.pop(0)
        inputs.update({one["name"]: links[one["link"]] for one in node["inputs"] if one.get("link") is not None})
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph
