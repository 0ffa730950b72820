"""What the registries, ComfyUI-Manager and the webui see of this repository."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lafr_core

ROOT = Path(__file__).parents[1]


def project() -> dict[str, object]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_accepts_the_project() -> None:
    data: dict[str, dict] = project()  # type: ignore[assignment]
    name = data["project"]["name"]
    assert len(name) < 100 and "comfyui" not in name.lower()
    assert data["project"]["version"] == lafr_core.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", lafr_core.__version__)
    assert f"## {lafr_core.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert {"PublisherId", "DisplayName"} <= set(data["tool"]["comfy"])
    assert data["tool"]["setuptools"]["packages"] == [
        "lafr_core",
        *sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lafr_core").glob("*/**/__init__.py")),
    ]


LISTS = (
    "requirements.txt",
    "requirements-detectors.txt",
    "requirements-formats.txt",
    "requirements-train.txt",
    "requirements-upscale.txt",
    "requirements-video.txt",
    "requirements-dev.txt",
)


def requirements(name: str) -> list[str]:
    """The lines of a requirements file that pip reads."""
    lines = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", LISTS)
def test_requirements_are_lower_bounds(name: str) -> None:
    wanted = requirements(name)
    one = r"""-r requirements(-train|-detectors|-video)?\.txt|[A-Za-z-]+(>=[0-9.]+)?( ; python_version >= "[0-9.]+")?"""
    assert wanted and all(re.fullmatch(one, line) for line in wanted)
    assert not any(line.startswith(("opencv", "basicsr", "gfpgan", "torchaudio")) for line in wanted)


def test_restoring_needs_nothing_heavy() -> None:
    """What pulls OpenCV, numba, onnxruntime or scikit-image stays out of the list that everybody installs."""
    names = {re.split(r"[>=]", line)[0] for line in requirements("requirements.txt")}
    assert names == {"torch", "numpy", "pillow", "safetensors", "tqdm", "einops", "diffusers", "accelerate"}


def test_the_extras_are_the_requirements_files() -> None:
    extras: dict[str, list[str]] = project()["project"]["optional-dependencies"]  # type: ignore[index]
    for name in ("detectors", "formats", "train", "upscale", "video"):
        assert extras[name] == [line for line in requirements(f"requirements-{name}.txt") if not line.startswith("-r")]
    assert extras["all"] == ["lafr[detectors,formats,train,upscale,video]"]


def test_no_file_is_a_program_by_accident() -> None:
    """No pickles, byte code or links in the repository's own folders."""
    for folder in ("lafr_core", "nodes", "scripts", "lafr_webui", "train", "web", "workflows", "locales"):
        for path in (ROOT / folder).rglob("*"):
            assert not path.is_symlink(), path
            assert path.suffix not in (".pth", ".pt", ".ckpt", ".pkl", ".bin", ".onnx"), path


def test_pictures_obey_the_limit_of_the_pre_commit_hook() -> None:
    """Half a megabyte a file, weights apart: what every clone has to carry stays small."""
    for folder in ("docs", "workflows", "web", "lafr_core/samples", "tests"):
        for path in (ROOT / folder).rglob("*"):
            assert not path.is_file() or "__pycache__" in path.parts or path.stat().st_size <= 500 * 1024, path


def test_the_starter_weights_fit_into_60_megabytes() -> None:
    files = list((ROOT / "lafr_core" / "weights").glob("*.safetensors"))
    if not files:
        pytest.skip("the starter weights are not there yet")
    assert sum(path.stat().st_size for path in files) <= 60_000_000


# --- install.py ---


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lafr_install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_install_does_nothing_when_nothing_is_missing(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "launch", None)  # importing it would fail
    assert install.missing() == []
    install.install()


def test_install_asks_the_webui_for_what_is_missing(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    webui = ModuleType("launch")
    webui.run_pip = lambda command, what: asked.append(command)  # type: ignore[attr-defined]
    monkeypatch.setitem(install.NEEDED, "surely_not_installed", "surely-not-installed")
    monkeypatch.setitem(sys.modules, "launch", webui)
    install.install()
    assert asked == ["install surely-not-installed"]


def test_install_leaves_other_hosts_alone(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(install.NEEDED, "surely_not_installed", "surely-not-installed")
    monkeypatch.setitem(sys.modules, "launch", None)
    install.install()  # ComfyUI-Manager runs it too: no error, nothing done


def test_test_files_have_names_of_their_own() -> None:
    """pytest collects two files of one name only where their folders are packages; ours are not."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
