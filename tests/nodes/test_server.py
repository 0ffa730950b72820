"""Every bundled workflow on a real, headless ComfyUI server, and what a user meets there: menus, errors, help, templates."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostenv
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
CHEAPER = {"KSampler": {"steps": 1}, "LAFR_IdentitySampler": {"steps": 2}}
"""A random network needs no more steps to prove that the graph runs."""


def prepare(comfy_root: Path, base: Path) -> None:
    """A fresh ComfyUI folder: the pack in custom_nodes, a photo in input, a small checkpoint."""
    data = pytest.importorskip("skimage.data")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "lafr").symlink_to(ROOT, target_is_directory=True)
    (base / "input").mkdir()
    Image.fromarray(data.astronaut()[:256, 96:352]).save(base / "input" / "example.png")
    if not (hostenv.SHARED_WEIGHTS / "taesd_encoder.safetensors").is_file():
        pytest.skip("TAESD weights are not here (LAFR_SHARED): no checkpoint can be made")
    hostenv.make_checkpoint(comfy_root, base / "models" / "checkpoints" / CHECKPOINT)


@pytest.fixture(scope="module")
def base(comfy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("server")
    prepare(comfy_root, folder)
    yield folder
    shutil.rmtree(folder / "models")


@pytest.fixture(scope="module")
def address(comfy_root: Path, base: Path) -> Iterator[hostenv.Address]:
    with hostenv.server(comfy_root, base) as address:
        yield address


def graph_of(address: str, file: Path) -> dict[str, Any]:
    graph = hostenv.to_graph(address, json.loads(file.read_text(encoding="utf-8")))
    for node in graph.values():
        node["inputs"].update(CHEAPER.get(node["class_type"], {}))
    return graph


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_runs(address: str, base: Path, file: Path) -> None:
    entry = hostenv.run_graph(address, graph_of(address, file))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    saved = [image for output in entry["outputs"].values() for image in output.get("images", []) if image["type"] == "output"]
    photo = Image.open(base / "input" / "example.png").convert("RGB")
    for image in saved:
        result = Image.open(base / "output" / image["subfolder"] / image["filename"]).convert("RGB")
        assert result.size[0] / photo.size[0] == result.size[1] / photo.size[1]
        assert result.resize(photo.size).tobytes() != photo.tobytes(), "the face was not touched"
    assert saved


def test_an_error_is_one_readable_sentence(address: str) -> None:
    graph = graph_of(address, ROOT / "workflows" / "4_many_faces.json")
    for node in graph.values():
        if node["class_type"] == "LAFR_IdentitySampler":
            node["inputs"]["mode"] = "few-step"
        if node["class_type"] == "LAFR_DetectFaces":
            node["inputs"]["faces"] = ""
    entry = hostenv.run_graph(address, graph)
    (message,) = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
    assert message["node_type"] == "LAFR_IdentitySampler"
    assert message["exception_message"].strip().startswith("MODEL: the starter prior restores in one step")


def test_templates_thumbnails_help_and_texts_are_served(address: str) -> None:
    served = hostenv.get(address, "/workflow_templates")["lafr"]
    assert sorted(served) == [file.stem for file in WORKFLOWS]
    for file in WORKFLOWS:
        hostenv.get(address, f"/api/workflow_templates/lafr/{file.name}")
        with urllib.request.urlopen(f"{address}/api/workflow_templates/lafr/{file.stem}.jpg") as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
    with urllib.request.urlopen(f"{address}/extensions/lafr/docs/LAFR_RestoreFaces.md") as answer:
        assert answer.read().startswith(b"# Restore Faces (LAFR)")
    texts = hostenv.get(address, "/i18n")
    assert texts["de"]["nodeDefs"]["LAFR_FacePaste"]["display_name"] == "Gesichter einfügen"


def test_starting_and_listing_load_nothing(address: str, base: Path) -> None:
    log = (base / "server.log").read_text()
    assert "IMPORT FAILED: lafr" not in log and "(IMPORT FAILED): " + str(base / "custom_nodes") not in log
    assert not (base / "models" / "lafr").exists()


SOAK = int(os.environ.get("LAFR_SOAK", "12"))
"""Prompts in the soak test; 300 for a real one."""


def resident(pid: int) -> int:
    """MiB of memory that the server holds."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to read the server's memory")
def test_many_prompts_of_all_kinds_neither_fail_nor_grow(address: hostenv.Address, base: Path) -> None:
    """Sizes, faces and no faces, batches and interrupts, as they come; memory after the first third is within 5 %."""
    dice = random.Random(0)
    face = Image.open(base / "input" / "example.png").convert("RGB")
    template = graph_of(address, ROOT / "workflows" / "1_starter_only.json")
    held = []
    for number in range(SOAK):
        size = (dice.randrange(33, 300), dice.randrange(33, 300))
        picture = face.resize(size) if dice.random() < 0.3 else Image.new("RGB", size, (dice.randrange(256), 90, 60))
        picture.save(base / "input" / f"soak{number}.png")
        graph = json.loads(json.dumps(template))
        for node in graph.values():
            if node["class_type"] == "LoadImage":
                node["inputs"]["image"] = f"soak{number}.png"
        graph["90"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": dice.choice([1, 1, 2])}}
        graph["2"]["inputs"].update({"image": ["90", 0], "detect_side": 256, "rotate": dice.random() < 0.2})
        queued = hostenv.post(address, "/prompt", {"prompt": graph})
        interrupted = dice.random() < 0.1
        if interrupted:
            time.sleep(dice.random())
            hostenv.post(address, "/interrupt", {})
        entry = hostenv.wait(address, queued["prompt_id"], 600)
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        assert entry["status"]["status_str"] == "success" or (interrupted and "execution_interrupted" in kinds), entry["status"]
        held.append(resident(address.pid))
    warm = held[SOAK // 3 :]
    assert max(warm[len(warm) // 2 :]) <= 1.05 * max(warm[: len(warm) // 2]), held
