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
QUICK = "1_starter_only"
"""Queued in the browser as well; the others are run by test_server."""


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


def test_every_workflow_opens_exports_and_one_is_queued(address: str, shots: Path, tmp_path: Path) -> None:
    asyncio.run(visit(address, shots, tmp_path))


async def visit(address: str, shots: Path, profile: Path) -> None:
    async with browser.page(address, profile) as page:
        for file in WORKFLOWS:
            await page.open(json.loads(file.read_text(encoding="utf-8")))
            missing = await page.run("app.graph._nodes.map(n=>n.type).filter(t=>!LiteGraph.registered_node_types[t])")
            assert missing == [], file.name
            exported = json.loads(await page.run("(async()=>JSON.stringify((await app.graphToPrompt()).output))()"))
            expected = hostenv.to_graph(address, json.loads(file.read_text(encoding="utf-8")))
            assert {number: plain(node) for number, node in exported.items()} == expected, file.name
            if file.stem == QUICK:
                await queue(page)
            await page.screenshot(shots / f"{file.stem}.png")
        await page.open(json.loads(WORKFLOWS[1].read_text(encoding="utf-8")))
        await help_page(page)
        await page.screenshot(shots / "help.png")


async def queue(page: browser.Page) -> None:
    for kind, values in CHEAPER.items():
        for name, value in values.items():
            nodes = f"app.graph._nodes.filter(n=>n.type==={kind!r})"
            await page.run(f"{nodes}.forEach(n=>n.widgets.find(w=>w.name==={name!r}).value={value})")
    await page.run("(async()=>{await app.queuePrompt(0,1)})()")
    await page.until("app.graph._nodes.some(n=>n.type==='SaveImage' && n.imgs?.length)", seconds=600)


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
    """A node as exported, without the input that only the frontend's own text preview has."""
    inputs = {name: value for name, value in node["inputs"].items() if (node["class_type"], name) != ("PreviewAny", "preview")}
    return {"class_type": node["class_type"], "inputs": inputs}
