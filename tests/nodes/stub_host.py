"""The few names of ComfyUI that the pack's modules mention, standing in for the host where it is not installed.

The stub records what schemas are declared with; it computes nothing. :func:`load` imports the pack under a name of its own, as
ComfyUI does, and takes the stand-ins out of ``sys.modules`` again.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


class Declared:
    """An input or output as it was declared."""

    io_type = ""

    def __init__(self, id: str | None = None, **kwargs: Any) -> None:
        self.id, self.kwargs = id, kwargs
        self.extra_dict: dict[str, Any] = dict(kwargs.get("extra_dict") or {})


def _type(name: str, *known: str) -> type:
    """A host type whose Input takes exactly ``known`` besides what every input takes (ComfyUI 0.3.64's signatures)."""
    parameter = inspect.Parameter
    optional = ("display_name", "optional", "tooltip", "lazy", "extra_dict", *known)

    def init(self: Declared, id: str, **kwargs: Any) -> None:
        unknown = set(kwargs) - set(optional)
        if unknown:
            raise TypeError(f"{name}.Input got unexpected keyword arguments {sorted(unknown)}")
        Declared.__init__(self, id, **kwargs)

    # What the pack inspects to leave out the arguments of newer hosts.
    init.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter("self", parameter.POSITIONAL_OR_KEYWORD), parameter("id", parameter.POSITIONAL_OR_KEYWORD)]
        + [parameter(one, parameter.POSITIONAL_OR_KEYWORD, default=None) for one in optional]
    )
    made = type("Input", (Declared,), {"__init__": init, "io_type": name})
    out = type("Output", (Declared,), {"io_type": name})
    return type(name, (), {"Input": made, "Output": out, "io_type": name})


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = ""
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False


@dataclass
class NewerSchema(Schema):
    search_aliases: list[str] = field(default_factory=list)


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.result = args


def _io(schema: type) -> types.SimpleNamespace:
    number = ("default", "min", "max", "step", "force_input", "display_mode")
    return types.SimpleNamespace(
        Schema=schema,
        ComfyNode=object,
        NodeOutput=NodeOutput,
        Custom=_type,
        Boolean=_type("BOOLEAN", "default"),
        Int=_type("INT", *number, "control_after_generate"),
        Float=_type("FLOAT", *number, "round"),
        String=_type("STRING", "default", "multiline", "placeholder", "force_input"),
        Combo=_type("COMBO", "options", "default"),
        **{name: _type(name.upper()) for name in ("Image", "Mask", "Latent", "Vae", "Model", "Conditioning", "Video")},
    )


def _modules(newer: bool, models: Path) -> dict[str, types.ModuleType]:
    made: dict[str, types.ModuleType] = {}

    def module(name: str, **names: Any) -> None:
        made[name] = types.ModuleType(name)
        made[name].__path__ = []  # type: ignore[attr-defined]
        made[name].__dict__.update(names)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])

    empty = type("Base", (), {})
    module("comfy_api")
    module(
        "comfy_api.latest",
        io=_io(NewerSchema if newer else Schema),
        ui=types.SimpleNamespace(),
        InputImpl=types.SimpleNamespace(),
        ComfyExtension=empty,
    )
    module("comfy_execution")
    module("comfy_execution.utils", get_executing_context=lambda: None)
    module("comfy")
    module("comfy.latent_formats", SD15=type("SD15", (), {}))
    module("comfy.model_base", BaseModel=torch.nn.Module)
    module("comfy.model_management", get_torch_device=lambda: torch.device("cpu"))
    module("comfy.model_patcher", ModelPatcher=empty)
    module("comfy.sd", VAE=empty)
    module("comfy.sample")
    module("comfy.samplers", KSampler=types.SimpleNamespace(SAMPLERS=["euler", "dpmpp_2m"], SCHEDULERS=["normal", "karras"]))
    module("comfy.supported_models")
    module("comfy.taesd")
    module("comfy.taesd.taesd")
    module("comfy.utils", ProgressBar=empty)
    module("latent_preview")
    table: dict[str, tuple[list[str], set[str]]] = {}

    def add(name: str, path: str) -> None:
        table.setdefault(name, ([], set()))[0].append(path)

    module(
        "folder_paths",
        folder_names_and_paths=table,
        models_dir=str(models),
        add_model_folder_path=add,
        get_filename_list=lambda name: ["other.safetensors", "notes.txt"],
        get_full_path=lambda folder, name: None,
        get_folder_paths=lambda name: table[name][0],
        get_input_directory=lambda: str(models / "input"),
    )
    return made


def load(newer: bool = False, models: Path = Path("models")) -> Any:
    """The pack's ``nodes`` package, imported on the stub of an older or a newer host."""
    name = "lafr_stub_newer" if newer else "lafr_stub"
    made = _modules(newer, models)
    for old in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
        del sys.modules[old]
    saved = {key: sys.modules.get(key) for key in made}
    sys.modules.update(made)
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec is not None and spec.loader is not None
        pack = importlib.util.module_from_spec(spec)
        sys.modules[name] = pack
        spec.loader.exec_module(pack)
        return importlib.import_module(f"{name}.nodes")
    finally:
        for key, module in saved.items():
            if module is None:
                del sys.modules[key]
            else:
                sys.modules[key] = module
