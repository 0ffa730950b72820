"""ComfyUI's real frontend in headless Chromium, driven over the DevTools protocol with aiohttp alone."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1800,1100"

READY = """!!(window.app && window.app.graph && window.app.extensionManager && window.app.vueAppReady !== false
  && Object.keys(window.LiteGraph?.registered_node_types || {}).length > 100)"""


class Page:
    """One tab. ``run`` evaluates JavaScript and returns its (JSON) value."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.count = socket, 0

    async def command(self, method: str, **parameters: Any) -> Any:
        self.count += 1
        mine = self.count
        await self.socket.send_json({"id": mine, "method": method, "params": parameters})
        while True:
            answer = json.loads((await self.socket.receive(timeout=600)).data)
            if answer.get("id") == mine:
                return answer.get("result", answer)

    async def run(self, expression: str) -> Any:
        answer = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"].get("exception", {}).get("description", "error in the page"))
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 600) -> None:
        for _ in range(int(seconds * 2)):
            if await self.run(expression):
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"never became true in the page: {expression}")

    async def screenshot(self, file: Path) -> None:
        shot = await self.command("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    async def drag(self, start: dict[str, float], end: dict[str, float]) -> None:
        """Press the left button at ``start`` (x, y in the window), move to ``end``, let go."""
        middle = {axis: (start[axis] + end[axis]) / 2 for axis in ("x", "y")}
        moves = [("mouseMoved", start, 0), ("mousePressed", start, 1), ("mouseMoved", middle, 1), ("mouseMoved", end, 1)]
        for kind, at, buttons in [*moves, ("mouseReleased", end, 0)]:
            button = "none" if kind == "mouseMoved" and not buttons else "left"
            await self.command(
                "Input.dispatchMouseEvent", type=kind, **at, button=button, buttons=buttons, clickCount=int(button == "left")
            )
            await asyncio.sleep(0.3)

    async def connect(self, source: int, output: str, target: int, name: str) -> None:
        """Draw a link by hand from an output of one node to an input of another."""
        start = await self.run(f"({SLOT})({source}, false, {output!r})")
        end = await self.run(f"({SLOT})({target}, true, {name!r})")
        await self.drag(start, end)

    async def nodes2(self, on: bool) -> bool:
        """Switch Nodes 2.0 on or off as its setting does; whether the frontend then draws with it."""
        await self.run(f"app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {json.dumps(on)})")
        await asyncio.sleep(1)
        return bool(await self.run("!!LiteGraph.vueNodesMode"))

    async def open(self, workflow: dict[str, Any]) -> None:
        """Load a workflow as dropping its file on the canvas does, and fit it into the window."""
        await self.run(f"(async()=>{{await app.loadGraphData({json.dumps(workflow)})}})()")
        await self.run(FIT)
        await asyncio.sleep(2)


FIT = """(()=>{const ns=app.graph._nodes, c=app.canvas; if(!ns.length) return;
 const x0=Math.min(...ns.map(n=>n.pos[0])), y0=Math.min(...ns.map(n=>n.pos[1]-40));
 const x1=Math.max(...ns.map(n=>n.pos[0]+n.size[0])), y1=Math.max(...ns.map(n=>n.pos[1]+n.size[1]));
 const s=Math.min((c.canvas.clientWidth-150)/(x1-x0),(c.canvas.clientHeight-150)/(y1-y0),1);
 c.ds.scale=s; c.ds.offset[0]=90/s-x0; c.ds.offset[1]=80/s-y0; c.setDirty(true,true)})()"""


SLOT = """(id, isInput, name) => { const node = app.graph.getNodeById(id), list = isInput ? node.inputs : node.outputs;
  const index = list.findIndex(slot => slot.name === name), canvas = app.canvas;
  const dot = document.querySelector(`[data-slot-key="${id}-${isInput ? 'in' : 'out'}-${index}"]`);
  if (LiteGraph.vueNodesMode && dot) {
    const box = dot.getBoundingClientRect(); return {x: box.left + box.width / 2, y: box.top + box.height / 2} }
  const [x, y] = node.getConnectionPos(isInput, index), box = canvas.canvas.getBoundingClientRect(), scale = canvas.ds.scale;
  return {x: box.left + (x + canvas.ds.offset[0]) * scale, y: box.top + (y + canvas.ds.offset[1]) * scale} }"""
"""Where in the window the dot of an input or output is."""


def chromium() -> str | None:
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@asynccontextmanager
async def page(address: str, profile: Path) -> AsyncIterator[Page]:
    """The frontend at ``address``, ready to use."""
    import aiohttp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = chromium()
    assert program is not None
    command = [program, *FLAGS.split(), f"--remote-debugging-port={port}", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with aiohttp.ClientSession() as session:
            # The first visit would show the template dialog.
            await session.post(f"{address}/settings/Comfy.TutorialCompleted", json=True)
            target = await _tab(session, port)
            async with session.ws_connect(target, max_msg_size=0) as connection:
                tab = Page(connection)
                await tab.command("Page.enable")
                await tab.command("Page.navigate", url=address)
                await tab.until(READY)
                yield tab
    finally:
        process.terminate()
        process.wait(20)


async def _tab(session: Any, port: int) -> str:
    import aiohttp

    for _ in range(1200):
        try:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [one for one in await answer.json() if one["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise AssertionError("Chromium did not open a tab")
