"""What may import what, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CORE = ROOT / "lafr_core"
MODULES = sorted(CORE.rglob("*.py"))

HOSTS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution", "modules", "modules_forge"}
HOSTS |= {"backend", "gradio", "fastapi", "launch", "latent_preview", "ldm"}
OPTIONAL = {"diffusers", "transformers", "peft", "facexlib", "insightface", "onnxruntime", "accelerate", "skimage", "tqdm"}
OPTIONAL |= {"torchvision", "yaml", "av"}
FORBIDDEN = {"cv2", "scipy", "basicsr", "gfpgan", "kornia", "train", "scripts", "lafr_webui", "benchmarks", "tests"}
GROUND = ("errors", "types", "settings", "geometry", "filters", "heap")
"""The ground floor, in the order they may import each other: each may use those before it. Every room stands on them."""
ROOMS = {"store": set(), "faces": {"store"}, "latent": {"store"}, "images": {"store"}}
"""Room -> the other rooms it may enter. faces, latent and images do not know each other: only the pipeline knows the order."""
UPSTAIRS = ("pipeline", "models", "api", "video", "app", "__main__", "")
"""What brings the rooms together, from below to above: each may use what stands before it and every room; "" is the package."""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(name, at module level): absolute names as they are, relative ones with their dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    outside = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in outside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [base] if node.module else [base + alias.name for alias in node.names]
            yield from ((name, node in outside) for name in names)


def core_module(path: Path, name: str) -> str:
    """The lafr_core module a relative import means: '.crop' in faces/ -> 'faces.crop', '..types' there -> 'types'."""
    inside = path.relative_to(CORE).parts[:-1]
    dots = len(name) - len(name.lstrip("."))
    return ".".join((*inside[: len(inside) + 1 - dots], name.lstrip("."))).strip(".")


def room_of(module: str) -> str:
    """The room, or the top-level module, that a dotted name inside lafr_core belongs to; '' is the package itself."""
    return module.split(".")[0]


def test_the_scan_sees_something() -> None:
    assert len(MODULES) > 30
    assert ("torch", True) in set(imports(CORE / "faces" / "crop.py"))
    assert ("..pipeline", True) in set(imports(CORE / "app" / "batch.py"))
    assert core_module(CORE / "faces" / "detectors" / "starter.py", "...types") == "types"
    assert core_module(CORE / "faces" / "detectors" / "__init__.py", ".starter") == "faces.detectors.starter"
    assert core_module(CORE / "app" / "cli.py", "..__version__") == "__version__" and room_of("faces.crop") == "faces"
    rooms = {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert rooms == {*ROOMS, "video", "app"}, "a new room: say in ROOMS what it may enter, and in docs/house.md what it is for"
    assert {path.stem for path in CORE.glob("*.py")} == {*GROUND, *UPSTAIRS[:3], "__main__", "__init__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_the_library_imports_no_host_and_only_itself_relatively(path: Path) -> None:
    for name, top_level in imports(path):
        first = name.split(".")[0]
        assert first not in HOSTS | FORBIDDEN, f"{path}: imports {name}"
        assert first != "lafr_core", f"{path}: imports {name} absolutely; inside a host the package has another name"
        assert not (top_level and first in OPTIONAL), f"{path}: imports {name} at module level; import it where it is used"


def allowed(own: str) -> set[str]:
    """Where a module of room ``own`` may look: itself, and everything below it."""
    if own in GROUND:
        return set(GROUND[: GROUND.index(own)])
    if own in ROOMS:
        return {own, *GROUND, *ROOMS[own]}
    return {*GROUND, *ROOMS, *UPSTAIRS[: UPSTAIRS.index(own) + 1], "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_point_down(path: Path) -> None:
    """Ground floor <- rooms <- pipeline, models, api <- app; no room enters its neighbour."""
    own = room_of(path.relative_to(CORE).with_suffix("").as_posix().replace("/", ".").replace("__init__", ""))
    wanted = {room_of(core_module(path, name)) for name, _ in imports(path) if name.startswith(".")}
    assert wanted <= allowed(own), f"{path.relative_to(CORE)} may not import {wanted - allowed(own)}"


def test_every_room_is_named_in_the_map() -> None:
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    assert [room for room in (*ROOMS, "video", "app") if f"`{room}/`" not in text] == []


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
sys.path.insert(0, {root!r})
"""

COST = """
import importlib, json, os, time
import torch
opened, touched = [], []
def audit(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        name = os.fsdecode(args[0])
        if not name.endswith((".py", ".pyc", ".so", ".pyd", ".dll")) and "__pycache__" not in name:
            opened.append(name)
    elif event.startswith(("socket.", "urllib.", "os.mkdir", "os.rename", "os.remove", "subprocess.", "tempfile.")):
        touched.append(event)
sys.addaudithook(audit)
start = time.process_time()
import lafr_core
package = time.process_time() - start
for name in {modules!r}:
    importlib.import_module(name)
everything = time.process_time() - start
print(json.dumps({{"package": package, "everything": everything, "opened": opened, "touched": touched,
                   "cuda": torch.cuda.is_initialized(), "modules": sorted(sys.modules)}}))
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500
    )


def test_importing_is_cheap_and_touches_nothing() -> None:
    """Every module, with every optional package away: at most 2 s of this process's time after torch, no file, no device."""
    names = [".".join(("lafr_core", *path.relative_to(CORE).with_suffix("").parts)) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    result = run(BLOCK.format(blocked=OPTIONAL | FORBIDDEN, root=str(ROOT)) + COST.format(modules=names))
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["package"] < 0.5 and seen["everything"] < 2.0
    assert [name for name in seen["opened"] if str(ROOT) in name or "/.cache" in name or "lafr" in name] == []
    assert seen["touched"] == [] and seen["cuda"] is False
    assert "lafr_core.app.cli" in seen["modules"] and not {"comfy", "gradio", "cv2"} & set(seen["modules"])


def test_the_library_works_under_another_name() -> None:
    """ComfyUI loads the pack as a package called after its folder: relative imports must be enough."""
    code = f"""
import importlib.util, sys
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location("some_pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["some_pack"] = pack
spec.loader.exec_module(pack)
import inspect
assert inspect.iscoroutinefunction(pack.comfy_entrypoint)
assert not hasattr(pack, "NODE_CLASS_MAPPINGS")  # it would hide comfy_entrypoint
assert pack.WEB_DIRECTORY == "./web"
from some_pack.lafr_core import pipeline
from some_pack.lafr_core.app import cli
assert "lafr_core" not in sys.modules and pipeline.__name__ == "some_pack.lafr_core.pipeline"
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_a_photo_is_restored_without_any_optional_package(tmp_path: Path, random_weights: dict[str, Path]) -> None:
    """facexlib, insightface, diffusers and accelerate could not be installed: the starter backends still restore."""
    Image.effect_noise((80, 80), 60).convert("RGB").save(tmp_path / "a.png")
    code = BLOCK.format(blocked=OPTIONAL - {"tqdm"} | FORBIDDEN, root=str(ROOT)) + (
        "from lafr_core.app.cli import main\n"
        "try:\n import facexlib\n"
        "except ImportError: pass\n"
        "else: sys.exit('facexlib was not blocked')\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    models = {
        "vae": "--vae",
        "adapter": "--adapter",
        "prior": "--prior",
        "detector": "--detector-weights",
        "embedder": "--embedder",
    }
    flags = [text for kind, flag in models.items() for text in (flag, str(random_weights[kind]))]
    result = run(
        code, "restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--detector", "starter", "--device", "cpu",
        "--aligned", "--report", str(tmp_path / "r.json"), *flags,  # random networks find no face
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads((tmp_path / "r.json").read_text())["inputs"]
    assert entry["status"] == "restored" and entry["faces"][0]["change"] is not None
    assert Image.open(tmp_path / "out" / "a.png").tobytes() != Image.open(tmp_path / "a.png").tobytes()


def test_nothing_in_the_library_is_written_beside_it() -> None:
    """No module computes a path inside the package except the one that finds the bundled weights."""
    users = [path.name for path in MODULES if "__file__" in path.read_text(encoding="utf-8")]
    assert users == ["assets.py"]
