"""Each bundled workflow in ComfyUI's real frontend: opens without missing nodes, exports, is queued, shows its result."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import hostenv
import pytest
from test_server import CHEAPER, WORKFLOWS, prepare

pytestmark = pytest.mark.skipif(browser.chromium() is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def address(comfy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("browser_base")
    prepare(comfy_root, base)
    with hostenv.server(comfy_root, base) as address:
        yield address


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, for people to look at: LAFR_SCREENSHOTS or a temporary folder."""
    folder = Path(os.environ.get("LAFR_SCREENSHOTS", "") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_an_untouched_node_sends_its_defaults_and_nothing_else(address: str, tmp_path: Path) -> None:
    """ComfyUI 0.33's frontend made a widget of the boxes' input and sent a box that nobody drew: all faces became mush."""
    asyncio.run(untouched(address, tmp_path))


async def untouched(address: str, profile: Path) -> None:
    async with browser.page(address, profile) as page:
        infos = hostenv.get(address, "/object_info")
        for node_type in sorted(name for name in infos if name.startswith("LAFR_")):
            sent = json.loads(await page.run(f"(async()=>JSON.stringify(await ({SENT})({node_type!r})))()"))
            sent.pop("compare_view", None)  # the host's own view of two pictures: no value of ours
            assert sent == hostenv.untouched(infos[node_type]), node_type


SENT = """async (type) => { app.graph.clear(); const node = LiteGraph.createNode(type); app.graph.add(node);
  return (await app.graphToPrompt()).output[node.id].inputs }"""
OVERLAPPING = """(()=>{const box=n=>[n.type, n.pos[0], n.pos[1]-30, n.pos[0]+n.size[0], n.pos[1]+n.size[1]];
  const all=app.graph._nodes.map(box), meet=(a,b)=>a[1]<b[3]&&b[1]<a[3]&&a[2]<b[4]&&b[2]<a[4];
  return all.flatMap((a,i)=>all.slice(0,i).filter(b=>meet(a,b)).map(b=>a[0]+' over '+b[0]))})()"""
SHOWN = """app.graph._nodes.filter(n=>n.type==='LAFR_RestoreFaces')
  .map(n=>n.widgets.filter(w=>w.type!=='button'&&n.isWidgetVisible(w)).length)"""


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_opens_exports_and_runs_from_the_browser(address: str, shots: Path, tmp_path: Path, file: Path) -> None:
    """Run is pressed in the page, and what it queues is the graph that the file holds: test_server.py judges its result."""
    asyncio.run(visit(address, shots, tmp_path, file))


async def visit(address: str, shots: Path, profile: Path, file: Path) -> None:
    async with browser.page(address, profile) as page:
        await page.open(json.loads(file.read_text(encoding="utf-8")))
        missing = await page.run("app.graph._nodes.map(n=>n.type).filter(t=>!LiteGraph.registered_node_types[t])")
        assert missing == []
        exported = json.loads(await page.run("(async()=>JSON.stringify((await app.graphToPrompt()).output))()"))
        expected = hostenv.to_graph(address, json.loads(file.read_text(encoding="utf-8")))
        assert {number: plain(node) for number, node in exported.items()} == expected
        assert await page.run(OVERLAPPING) == []
        assert all(count <= 6 for count in await page.run(SHOWN))
        await queue(address, page)
        await page.run(browser.FIT)
        assert await page.run(OVERLAPPING) == []
        await asyncio.sleep(2)
        await page.screenshot(shots / f"{shots_name(address)}_{file.stem}.png")


def shots_name(address: str) -> str:
    return "ComfyUI-" + str(hostenv.get(address, "/system_stats")["system"]["comfyui_version"])


def test_a_nodes_help_page_opens(address: str, shots: Path, tmp_path: Path) -> None:
    async def look() -> None:
        async with browser.page(address, tmp_path) as page:
            await page.open(json.loads(WORKFLOWS[1].read_text(encoding="utf-8")))
            await help_page(page)
            await page.screenshot(shots / f"{shots_name(address)}_help.png")

    asyncio.run(look())


async def queue(address: str, page: browser.Page) -> None:
    """Press Run with the cheap values, and wait until the server's history tells of success."""
    for kind, values in CHEAPER.items():
        for name, value in values.items():
            nodes = f"app.graph._nodes.filter(n=>n.type==={kind!r})"
            await page.run(f"{nodes}.forEach(n=>n.widgets.find(w=>w.name==={name!r}).value={value})")
    before = set(hostenv.get(address, "/history"))
    await page.run("(async()=>{await app.queuePrompt(0,1)})()")
    for _ in range(1200):
        new = {key: entry for key, entry in hostenv.get(address, "/history").items() if key not in before}
        if new and all(entry.get("status", {}).get("status_str") for entry in new.values()):
            break
        await asyncio.sleep(0.5)
    assert [entry["status"]["status_str"] for entry in new.values()] == ["success"]
    await page.until("app.graph._nodes.some(n=>n.type==='SaveImage' && n.imgs?.length)", seconds=60)


SELECT = """(()=>{const n=app.graph._nodes.find(n=>n.type==='LAFR_FacePaste');
  app.canvas.selectNode(n); app.canvas.setDirty(true,true); return !!n})()"""
PRESS_HELP = """(()=>{const b=document.querySelector('[data-testid=info-button]'); if(b) b.click(); return !!b})()"""
PICTURE_SHOWN = "[...document.querySelectorAll('img')].some(i=>i.src.includes('/docs/assets/') && i.naturalWidth>0)"


async def help_page(page: browser.Page) -> None:
    """Select a node and open its help: our page with its picture, not the frontend's generic one."""
    await page.until(SELECT)
    await page.until(PRESS_HELP, seconds=30)
    await page.until("document.body.innerText.includes('Looks pasted?')", seconds=30)
    await page.until(PICTURE_SHOWN, seconds=30)


def plain(node: dict[str, Any]) -> dict[str, Any]:
    """A node as exported, without the inputs that only the frontend's own previews have."""
    shown = {"PreviewAny": "preview", "LAFR_Compare": "compare_view"}
    inputs = {name: value for name, value in node["inputs"].items() if name != shown.get(node["class_type"])}
    return {"class_type": node["class_type"], "inputs": inputs}
