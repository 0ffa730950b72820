"""Every bundled workflow on a real, headless ComfyUI server, and what a user meets there: menus, errors, help, templates."""

from __future__ import annotations

import asyncio
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
    """A fresh ComfyUI folder: the pack in custom_nodes, a small checkpoint, nothing else."""
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "lafr").symlink_to(ROOT, target_is_directory=True)
    (base / "input").mkdir()
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
    """Every template restores the photos it starts from: as many, in their shapes, changed."""
    graph = graph_of(address, file)
    (source,) = [number for number, node in graph.items() if node["class_type"] in ("LAFR_SamplePhoto", "LAFR_LoadFolder")]
    graph["91"] = {"class_type": "SaveImage", "inputs": {"images": [source, 0], "filename_prefix": f"before_{file.stem}"}}
    entry = hostenv.run_graph(address, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    outputs = {number: saved(base, output) for number, output in entry["outputs"].items()}
    before, after = outputs.pop("91"), [picture for pictures in outputs.values() for picture in pictures]
    assert len(after) == len(before) >= 1
    for photo, result in zip(before, after, strict=True):
        assert result.width / photo.width == result.height / photo.height
        assert result.resize(photo.size).tobytes() != photo.tobytes(), "the face was not touched"


def saved(base: Path, output: dict[str, Any]) -> list[Image.Image]:
    """The pictures that a node wrote into the output folder; the frames of a video."""
    written = [image for image in output.get("images", []) if image["type"] == "output"]
    files = [base / "output" / image["subfolder"] / image["filename"] for image in written]
    return [picture for file in files for picture in pictures_of(file)]


def pictures_of(file: Path) -> list[Image.Image]:
    if file.suffix == ".png":
        return [Image.open(file).convert("RGB")]
    import av

    with av.open(str(file)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def test_the_host_finds_our_nodes_by_other_words_and_among_the_essentials(address: str) -> None:
    infos = hostenv.get(address, "/object_info")
    ours = {name: info for name, info in infos.items() if name.startswith("LAFR_")}
    if not any("search_aliases" in info for info in infos.values()):
        pytest.skip("this ComfyUI knows neither search aliases nor essentials")
    assert all(len(info["search_aliases"]) >= 3 for info in ours.values())
    # Headings that the host's own nodes have: another word would open a tab of our own.
    headings = {info.get("essentials_category") for name, info in infos.items() if not name.startswith("LAFR_")}
    tabs = {name: info["essentials_category"] for name, info in ours.items() if info.get("essentials_category")}
    assert set(tabs.values()) <= headings
    assert tabs["LAFR_RestoreFaces"] == "Image Tools" and tabs["LAFR_RestoreVideo"] == "Video Tools"


def test_the_node_counts_faces_and_then_shows_its_report(address: str, base: Path) -> None:
    """What a person reads in the node while it works and afterwards, as the server sends it to the page."""
    graph = graph_of(address, ROOT / "workflows" / "1_starter_only.json")
    (node,) = [number for number, one in graph.items() if one["class_type"] == "LAFR_RestoreFaces"]
    graph[node]["inputs"]["strength"] = 0.9  # not what the cache holds
    said = asyncio.run(told(address, graph, node))
    counted = [line for line in said if line.startswith("face ")]
    assert counted[-1] == "face 4 of 4" and len(counted) == len(set(counted)) >= 1
    assert "looked for faces in photo 1 of 1" in said
    lines = said[-1].split("  \n")  # hard line breaks, on the canvas and in Nodes 2.0's Markdown
    assert lines[0].startswith("1 photo, 4 faces") and [line[:15] for line in lines[1:5]] == [
        f"photo 0, face {number}" for number in range(4)
    ]


async def told(address: str, graph: dict[str, Any], node: str) -> list[str]:
    """The texts that the server shows in ``node`` while ``graph`` runs."""
    import aiohttp

    client, said = "lafr-test", []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}/ws?clientId={client}") as socket:
        async with session.post(f"{address}/prompt", json={"prompt": graph, "client_id": client}) as answer:
            assert answer.status == 200, await answer.text()
        while True:
            message = await socket.receive(timeout=600)
            if message.type == aiohttp.WSMsgType.BINARY and int.from_bytes(message.data[:4], "big") == PROGRESS_TEXT:
                length = int.from_bytes(message.data[4:8], "big")
                if message.data[8 : 8 + length].decode() == node:
                    said.append(message.data[8 + length :].decode())
            elif message.type == aiohttp.WSMsgType.TEXT:
                kind = json.loads(message.data)["type"]
                assert kind not in ("execution_error", "execution_interrupted"), message.data
                if kind == "execution_success":
                    return said


PROGRESS_TEXT = 3
"""ComfyUI's BinaryEventTypes.TEXT."""


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


def resident(pid: int, what: str = "VmRSS") -> int:
    """MiB of memory that the server holds; VmHWM: held at most since :func:`forget_peak`."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith(what)]
    return int(line.split()[1]) // 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to read the server's memory")
def test_many_prompts_of_all_kinds_neither_fail_nor_grow(address: hostenv.Address, base: Path) -> None:
    """Sizes, faces, no faces, batches, templates and interrupts, as they come.

    Like is compared with like: after the first third, no prompt leaves the server with 5 % more than such prompts did before,
    and the last run of a template with no more than 5 % over its earlier ones. A long soak runs all templates twice beforehand,
    the heaviest last: a host opens much at first use, and the very first prompt finds an empty server.
    """
    dice = random.Random(0)
    face = Image.open(ROOT / "lafr_core" / "samples" / "portrait.jpg").convert("RGB")
    # The template that samples a whole enlarged photo takes minutes on a CPU: seldom, and in a long soak only.
    cheap = {file.stem: one_face(graph_of(address, file)) for file in WORKFLOWS if file.stem[0] != "6"}
    templates = [*cheap.items()] * 2 + [(file.stem, graph_of(address, file)) for file in WORKFLOWS if file.stem[0] == "6"]
    held: dict[str, list[int]] = {}
    interrupts = 0
    if len(templates) * 20 <= SOAK:
        for name, graph in 2 * templates[len(cheap) :]:
            assert hostenv.run_graph(address, graph, 1800)["status"]["status_str"] == "success"
            held[name] = [resident(address.pid)]
    for number in range(SOAK):
        size = (dice.randrange(33, 300), dice.randrange(33, 300))
        picture = face.resize(size) if dice.random() < 0.3 else Image.new("RGB", size, (dice.randrange(256), 90, 60))
        picture.save(base / "input" / f"soak{number}.png")
        settings = {"detect_side": 256, "rotate": dice.random() < 0.2}
        kind, graph = "photo", restoring(address, f"soak{number}.png", dice.choice([1, 1, 2]), settings)
        if number % 20 == 9:
            kind, graph = templates[number // 20 % len(templates)]
        queued = hostenv.post(address, "/prompt", {"prompt": graph})
        interrupted = dice.random() < 0.1
        if interrupted:
            time.sleep(dice.random())
            hostenv.post(address, "/interrupt", {})
        entry = hostenv.wait(address, queued["prompt_id"], 1800)
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        assert entry["status"]["status_str"] == "success" or (interrupted and "execution_interrupted" in kinds), entry["status"]
        interrupts += "execution_interrupted" in kinds
        held.setdefault(kind, []).append(resident(address.pid))
    print(f"memory of the server, MiB: {held}; {interrupts} interrupted")
    warm = held["photo"][SOAK // 3 :]
    assert max(warm[len(warm) // 2 :]) <= 1.05 * max(warm[: len(warm) // 2]), held
    for name, (*earlier, last) in held.items():
        assert name == "photo" or not earlier or last <= 1.05 * max(earlier), (name, held)


def one_face(graph: dict[str, Any]) -> dict[str, Any]:
    """A template's graph with the portrait for the group where a random checkpoint restores."""
    if any(node["class_type"] == "CheckpointLoaderSimple" for node in graph.values()):
        for node in graph.values():
            if node["class_type"] == "LAFR_SamplePhoto":
                node["inputs"]["photo"] = "portrait"
    return graph


def restoring(address: str, photo: str, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A graph that restores ``count`` copies of a photo from the input folder."""
    values = {**hostenv.untouched(hostenv.get(address, "/object_info/LAFR_RestoreFaces")["LAFR_RestoreFaces"]), **settings}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": count}},
        "3": {"class_type": "LAFR_RestoreFaces", "inputs": {**values, "image": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "LAFR/soak"}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    }


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to read the server's memory")
def test_the_memory_of_a_clip_is_the_clip_and_not_its_crops(address: hostenv.Address, base: Path) -> None:
    """Frames with a face each: 512x512 crops of all of them would be 3 MiB a frame, ten times what these frames are."""
    face = Image.open(ROOT / "lafr_core" / "samples" / "portrait.jpg").convert("RGB").resize((160, 160))
    face.save(base / "input" / "frame.png")

    def peak(frames: int) -> int:
        graph = restoring(address, "frame.png", frames, {"detect_side": 160, "small_faces": False, "batch_size": 2})
        forget_peak(address.pid)
        entry = hostenv.run_graph(address, graph, 1800)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        return resident(address.pid, "VmHWM")

    few, many = peak(FEW), peak(FRAMES)
    print(f"peak of the server, MiB: {few} for {FEW} frames, {many} for {FRAMES}")
    assert many - few < 30 + (FRAMES - FEW) * 1.5


FEW = 24
"""Frames after which the buffers of a batch have found their places in the heap: what comes on top is the frames."""
FRAMES = int(os.environ.get("LAFR_FRAMES", "96"))
"""Frames in the memory test; 240 for a real one."""


def test_a_box_without_a_face_is_reported_and_a_batch_restores_all(address: str, base: Path) -> None:
    graph = restoring(address, "frame.png", 1, {"detect_side": 160})
    Image.open(ROOT / "lafr_core" / "samples" / "portrait.jpg").resize((160, 160)).save(base / "input" / "frame.png")
    graph["3"]["inputs"]["bounding_boxes"] = {"x": 0, "y": 0, "width": 512, "height": 512}
    entry = hostenv.run_graph(address, graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    (report,) = entry["outputs"]["5"]["text"]
    assert "box 0, 0, 512, 512: no face in it, left alone" in report
    (result,) = saved(base, entry["outputs"]["4"])
    assert result.tobytes() == Image.open(base / "input" / "frame.png").convert("RGB").tobytes()
