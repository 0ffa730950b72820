"""A webui without a webui: the host's modules as far as LAFR touches them, and tiny networks whose results can be predicted."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.latent.spec import FAMILIES
from lafr_core.types import Alignment, Face, Models

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "lafr_extras.py"
FORGE_ROOT = os.environ.get("FORGE_ROOT", "")
LANDMARKS = ((24.0, 30.0), (40.0, 30.0), (32.0, 38.0), (26.0, 46.0), (39.0, 46.0))


class Component:
    """Any gradio component: keeps its arguments, works as a context manager."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.value, self.label = kwargs.get("value", args[0] if args else None), kwargs.get("label")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> bool:
        return False

    def click(self, fn: Any, inputs: Any, outputs: Any, **_: Any) -> None:
        self.clicked = (fn, inputs, outputs)


def gradio() -> types.ModuleType:
    module = types.ModuleType("gradio")

    def component(name: str) -> type:
        if name.startswith("__"):  # no package: gradio.context is not to be had
            raise AttributeError(name)
        return type(name, (Component,), {})

    module.__getattr__ = component  # type: ignore[method-assign]
    return module


class State:
    """``shared.state`` with the fields of every version; ``begin`` resets the flags as the host's does."""

    def __init__(self) -> None:
        self.skipped = self.interrupted = False
        self.job, self.textinfo, self.sampling_step, self.sampling_steps = "", "host text", 3, 20
        self.log: list[str] = []

    def begin(self, job: str = "(unknown)") -> None:
        self.job, self.skipped, self.interrupted = job, False, False
        self.log.append(f"begin {job}")

    def end(self) -> None:
        self.job = ""
        self.log.append("end")


class OptionInfo:
    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Any = None,
        section: Any = None,
    ) -> None:
        self.default, self.label, self.component, self.component_args, self.section = (
            default,
            label,
            component,
            component_args,
            section,
        )


class Opts:
    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}
        self.postprocessing_operation_order: list[str] = []
        self.postprocessing_disable_in_extras: list[str] = []

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


class ScriptPostprocessing:
    """The base class as A1111 1.3 has it: no firstpass, no extra images."""

    filename = controls = args_from = args_to = name = group = None
    order = 1000

    def ui(self) -> Any: ...

    def process(self, pp: Any, **args: Any) -> None: ...

    def image_changed(self) -> None: ...


class PostprocessedImage:
    """A1111 1.3's: an image and an info, nothing more."""

    def __init__(self, image: Any) -> None:
        self.image, self.info = image, {}


class Runner:
    """The contract of A1111's ``ScriptPostprocessingRunner``: the same calls in the same order, exceptions of ``process``
    not caught.
    """

    def __init__(self, shared: Any, classes: list[Any], shown: list[str]) -> None:
        self.shared, self.shown, self.controls_made = shared, shown, False
        self.scripts = sorted((cls() for cls in classes), key=lambda script: script.order)

    def setup_ui(self) -> None:
        count = 0
        for script in self.scripts:
            try:
                script.controls = script.ui()
            except Exception as error:
                self.shown.append(f"ui: {error}")
                script.controls = None
            script.args_from = count
            count += len(list(script.controls.values()))
            script.args_to = count
        self.controls_made = True

    def create_args_for_run(self, given: dict[str, dict[str, Any]]) -> list[Any]:
        if not self.controls_made:
            self.setup_ui()
        values: list[Any] = []
        for script in self.scripts:
            mine = given.get(script.name, {})
            values += [mine.get(name) for name in script.controls]
        return values

    def run(self, pp: Any, values: list[Any]) -> None:
        for script in self.scripts:
            self.shared.state.job = script.name
            script.process(pp, **dict(zip(script.controls, values[script.args_from : script.args_to], strict=True)))


class Webui:
    """One webui in ``sys.modules``: built by the ``webui`` fixture, which takes it away again."""

    def __init__(self, monkeypatch: Any, real_runner: bool, folder: Path = Path("nowhere")) -> None:
        self.shown: list[str] = []
        self.callbacks: dict[str, list[Any]] = {
            "ui_settings": [],
            "app_started": [],
            "before_image_saved": [],
            "after_component": [],
        }
        self.real_runner = real_runner
        for name in [name for name in sys.modules if name == "modules" or name.startswith("modules.")]:
            monkeypatch.delitem(sys.modules, name)
        if real_runner:
            monkeypatch.syspath_prepend(FORGE_ROOT)
            import modules
        else:
            modules = types.ModuleType("modules")
        self.modules = modules

        def put(name: str, **attributes: Any) -> Any:
            module = types.ModuleType(f"modules.{name}")
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, f"modules.{name}", module)
            setattr(modules, name, module)
            return module

        monkeypatch.setitem(sys.modules, "modules", modules)
        monkeypatch.setitem(sys.modules, "gradio", gradio())
        self.shared = put(
            "shared",
            opts=Opts(),
            state=State(),
            face_restorers=[],
            OptionInfo=OptionInfo,
            sd_model=None,
            cmd_opts=types.SimpleNamespace(api=True, nowebui=False, api_auth=None),
        )
        self.devices = put(
            "devices",
            device=torch.device("cpu"),
            cpu=torch.device("cpu"),
            dtype=torch.float32,
            dtype_vae=torch.float32,
            dtype_unet=torch.float32,
            autocast=contextlib.nullcontext,
            torch_gc=lambda: None,
            get_device_for=lambda task: torch.device("cpu"),
            get_optimal_device=lambda: torch.device("cpu"),
        )
        self.folder = folder
        put("paths_internal", models_path=str(folder / "models"), script_path=str(folder))
        self.call_queue = put("call_queue", queue_lock=threading.Lock())
        self.sd_models = put("sd_models")
        self.ui_components = put("ui_components", InputAccordion=lambda value=None, **kw: Component(value=value, **kw))
        put(
            "script_callbacks",
            on_ui_settings=self.callbacks["ui_settings"].append,
            on_app_started=self.callbacks["app_started"].append,
            on_after_component=self.callbacks["after_component"].append,
            on_before_image_saved=self.callbacks["before_image_saved"].append,
        )
        if real_runner:
            from modules import errors, scripts_postprocessing

            monkeypatch.setattr(errors, "display", lambda error, task, **kw: self.shown.append(f"{task}: {error}"))
            self.PostprocessedImage = scripts_postprocessing.PostprocessedImage
        else:
            put("errors", display=lambda error, task, **kw: self.shown.append(f"{task}: {error}"))
            put("scripts_postprocessing", ScriptPostprocessing=ScriptPostprocessing, PostprocessedImage=PostprocessedImage)
            self.PostprocessedImage = PostprocessedImage
        self._put = put

    def load(self) -> list[Any]:
        """Run the script file as the host does, and return the classes it registers."""
        spec = __import__("importlib.util").util.spec_from_file_location(SCRIPT.name, SCRIPT)
        module = __import__("importlib.util").util.module_from_spec(spec)
        spec.loader.exec_module(module)
        base = self.modules.scripts_postprocessing.ScriptPostprocessing
        return [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, base)]

    def runner(self, *others: Any) -> Any:
        """A runner with LAFR's script and ``others``: Forge's real one, or the stub."""
        classes = [*self.load(), *others]
        if not self.real_runner:
            return Runner(self.shared, classes, self.shown)
        data = [types.SimpleNamespace(script_class=cls, path=str(SCRIPT)) for cls in classes]
        self._put("scripts", postprocessing_scripts_data=data)
        return self.modules.scripts_postprocessing.ScriptPostprocessingRunner()

    def run(self, image: Any, values: dict[str, Any], runner: Any = None) -> Any:
        """One picture through the runner with LAFR's ``values``; returns the PostprocessedImage."""
        runner = runner or self.runner()
        pp = self.PostprocessedImage(image)
        runner.run(pp, runner.create_args_for_run({"LAFR": values}))
        return pp


class ToyDetector:
    """A face wherever a pure red pixel marks its top left corner; 64 px wide, best first by its blue."""

    name = "toy"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        self.calls += 1
        marks = ((image[0] > 0.99) & (image[1] < 0.01)).nonzero().tolist()
        faces = []
        for y, x in marks:
            score = 0.9 - 0.2 * float(image[2, y, x])
            points = tuple((x + px, y + py) for px, py in LANDMARKS)
            faces.append(Face((float(x), float(y), x + 64.0, y + 64.0), points, score))  # type: ignore[arg-type]
        return [face for face in sorted(faces, key=lambda face: -face.score) if face.score >= threshold]


class ToyVae(torch.nn.Module):
    """Three latent channels are the 8x8 means of the pixels, the fourth is zero; decoding repeats them. Differentiable."""

    spec = FAMILIES["sd"]

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.encoded = 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += pixels.shape[0]
        mean = F.avg_pool2d(pixels * 2 - 1, 8) * self.gain
        return torch.cat([mean, torch.zeros_like(mean[:, :1])], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return (F.interpolate(latents[:, :3] * self.gain, scale_factor=8.0, mode="nearest") * 0.5 + 0.5).clamp(0, 1)


class ToyAligner:
    spec = FAMILIES["sd"]

    def __call__(self, latents: Tensor, fidelity: float) -> Alignment:
        return Alignment(latents * fidelity, torch.ones_like(latents[:, :1]))


class ToyPrior:
    spec = FAMILIES["sd"]

    def __call__(self, latents: Tensor) -> Tensor:
        return latents + 0.25


class ToyEmbedder:
    """Mean colours of the four quarters, as a unit vector."""

    name = "toy"

    def __call__(self, crops: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(crops - 0.5, 2).flatten(1), dim=1)


def toy_parts(**changes: Any) -> Models:
    values: dict[str, Any] = {"detector": ToyDetector(), "vae": ToyVae(), "aligner": ToyAligner(), "prior": ToyPrior()}
    return Models(**{**values, "embedder": ToyEmbedder(), **changes})


def photo(size: tuple[int, int] = (160, 120), faces: int = 1, mode: str = "RGB", level: int = 90) -> Any:
    """A photo of ``size`` (w, h) with up to two marked faces: fixed noise, but for its right edge of gray ``level``."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(5).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    noise[:, -8:] = level
    image = Image.fromarray(noise)
    for index in range(faces):
        image.putpixel((8 + 70 * index, 20), (255, 0, 60 * index))
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image if image.mode == mode else image.convert(mode)


def sharp_and_poor() -> tuple[Any, Any]:
    """Two photos (160, 120) of one marked face: the second has lost what the first can lend it."""
    import numpy as np
    from PIL import Image, ImageFilter

    noise = np.random.default_rng(5).integers(0, 200, (30, 40, 3), dtype=np.uint8)
    sharp = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    poor = sharp.filter(ImageFilter.GaussianBlur(3))
    for image in (sharp, poor):
        image.putpixel((8, 20), (255, 0, 0))
    return sharp, poor


def info(pp: Any) -> Any:
    """The report behind what the webui would write into the picture's file."""
    from lafr_webui.infotext import KEY, parse
    from lafr_webui.record import before_saved

    params = types.SimpleNamespace(pnginfo={"extras": f"{KEY}: {pp.info[KEY]}"})
    before_saved(params)
    return parse(params.pnginfo["extras"].removeprefix(f"{KEY}: "))
