"""Each bundled workflow in ComfyUI's real frontend: opens without missing nodes, exports, is queued, shows its result."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import browser
import hostenv
import pytest
from test_server import CHEAPER, WORKFLOWS, prepare

pytestmark = pytest.mark.skipif(browser.chromium() is None, reason="Chromium is not installed")
T = TypeVar("T")


class Visit:
    """One tab on one server for all tests of a host: Chromium takes long to start."""

    def __init__(self, address: hostenv.Address, profile: Path) -> None:
        self.address, self.loop = address, asyncio.new_event_loop()
        self.infos = hostenv.get(address, "/object_info")
        self._opened = browser.page(address, profile)
        self.page = self.do(self._opened.__aenter__())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self._opened.__aexit__(None, None, None))
        self.loop.close()


@pytest.fixture(scope="module")
def tab(comfy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    base = tmp_path_factory.mktemp("browser_base")
    prepare(comfy_root, base)
    with hostenv.server(comfy_root, base) as address:
        visit = Visit(address, tmp_path_factory.mktemp("profile"))
        yield visit
        visit.close()


@pytest.fixture
def classic(tab: Visit) -> Visit:
    """The tab with nodes drawn on the canvas."""
    assert not tab.do(tab.page.nodes2(False))
    return tab


@pytest.fixture
def modern(tab: Visit) -> Iterator[Visit]:
    """The tab with Nodes 2.0."""
    switch_on(tab)
    yield tab
    tab.do(tab.page.nodes2(False))


def switch_on(tab: Visit) -> None:
    """Nodes 2.0, or a skip: older frontends try it out only."""
    if "ImageCompare" not in tab.infos:
        pytest.skip("Nodes 2.0 is an unfinished trial in this host's frontend")
    assert tab.do(tab.page.nodes2(True))


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, for people to look at: LAFR_SCREENSHOTS or a temporary folder."""
    folder = Path(os.environ.get("LAFR_SCREENSHOTS", "") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_an_untouched_node_sends_its_defaults_and_nothing_else(classic: Visit) -> None:
    """ComfyUI 0.33's frontend made a widget of the boxes' input and sent a box that nobody drew: all faces became mush."""
    classic.do(untouched(classic))


def test_an_untouched_node_sends_the_same_in_nodes_2(modern: Visit) -> None:
    modern.do(untouched(modern))


async def untouched(tab: Visit) -> None:
    for node_type in sorted(name for name in tab.infos if name.startswith("LAFR_")):
        sent = json.loads(await tab.page.run(f"(async()=>JSON.stringify(await ({SENT})({node_type!r})))()"))
        assert sent == hostenv.untouched(tab.infos[node_type]), node_type


SENT = """async (type) => { app.graph.clear(); const node = LiteGraph.createNode(type); app.graph.add(node);
  return (await app.graphToPrompt()).output[node.id].inputs }"""
OVERLAPPING = """(()=>{const drawn=n=>document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect();
  const box=n=>{ const r=LiteGraph.vueNodesMode ? drawn(n) : null; return r ? [n.type, r.left, r.top, r.right, r.bottom] :
    [n.type, n.pos[0], n.pos[1]-30, n.pos[0]+n.size[0], n.pos[1]+n.size[1]]};
  const all=app.graph._nodes.map(box), meet=(a,b)=>a[1]<b[3]&&b[1]<a[3]&&a[2]<b[4]&&b[2]<a[4];
  return all.flatMap((a,i)=>all.slice(0,i).filter(b=>meet(a,b)).map(b=>a[0]+' over '+b[0]))})()"""
SHOWN = """app.graph._nodes.filter(n=>n.type==='LAFR_RestoreFaces')
  .map(n=>n.widgets.filter(w=>w.type!=='button'&&n.isWidgetVisible(w)).length)"""
SHOWN_2 = """app.graph._nodes.filter(n=>n.type==='LAFR_RestoreFaces').map(n=>
  document.querySelector(`[data-node-id="${n.id}"]`).querySelectorAll('.lg-node-widget').length)"""
BOX_SOCKETS = """app.graph._nodes.flatMap(n=>n.inputs.filter(i=>i.type==='BOUNDING_BOX'))
  .map(i=>i.widget ? 'widget' : 'socket')"""


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_opens_exports_and_runs_from_the_browser(classic: Visit, shots: Path, file: Path) -> None:
    """Run is pressed in the page, and what it queues is the graph that the file holds: test_server.py judges its result."""
    classic.do(opens(classic, file, SHOWN))
    classic.do(runs(classic, shots / f"{shots_name(classic.address)}_{file.stem}.png"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_opens_in_nodes_2(modern: Visit, shots: Path, file: Path) -> None:
    modern.do(opens(modern, file, SHOWN_2))
    modern.do(modern.page.screenshot(shots / f"{shots_name(modern.address)}_nodes2_{file.stem}.png"))


def test_nodes_2_shows_both_photos_under_the_slider_and_the_report_line_by_line(modern: Visit, shots: Path) -> None:
    async def look() -> None:
        await modern.page.open(json.loads(WORKFLOWS[0].read_text(encoding="utf-8")))
        await runs(modern, shots / f"{shots_name(modern.address)}_nodes2.png")
        assert await modern.page.run(UNDER_SLIDER) == 2, "before and after, and no sheet beside them"
        lines = await modern.page.run(
            f"document.querySelector(`[data-node-id=\"${{{COMPARE}.id}}\"]`).innerText.split('\\n').map(l=>l.trim())"
        )
        assert [line[:15] for line in lines if line.startswith("photo 0")] == [f"photo 0, face {n}" for n in range(4)]
        sent = json.loads(await modern.page.run("(async()=>JSON.stringify((await app.graphToPrompt()).output))()"))
        assert "compare_view" not in next(node for node in sent.values() if node["class_type"] == "LAFR_Compare")["inputs"]

    modern.do(look())


def test_nodes_2_may_be_switched_on_and_off_while_a_result_is_shown(tab: Visit, shots: Path) -> None:
    """The compare node shows its sheet on the canvas and its slider in Nodes 2.0, whichever drew it first."""

    async def look(nodes2: bool) -> tuple[bool, int, list[int]]:
        """Whether the sheet is hidden, photos under the slider, and widgets shown on Restore Faces."""
        assert await tab.page.nodes2(nodes2) == nodes2
        await asyncio.sleep(2)
        await tab.page.screenshot(shots / f"{shots_name(tab.address)}_switched_{'on' if nodes2 else 'off'}.png")
        hidden = await tab.page.run(f"!!{COMPARE}.hideOutputImages")
        return hidden, await tab.page.run(UNDER_SLIDER), await tab.page.run(SHOWN_2 if nodes2 else SHOWN)

    switch_on(tab)  # or skip
    for first in (False, True):
        tab.do(tab.page.nodes2(first))
        tab.do(tab.page.open(json.loads(WORKFLOWS[0].read_text(encoding="utf-8"))))
        tab.do(queue(tab.address, tab.page))
        for nodes2 in (first, not first, first):
            hidden, photos, widgets = tab.do(look(nodes2))
            assert (hidden, photos) == (nodes2, 2 if nodes2 else 0), (first, nodes2)
            assert all(count <= 6 + 1 for count in widgets), (first, nodes2)  # and the report's text
        tab.do(tab.page.run("app.graph.clear()"))
    tab.do(tab.page.nodes2(False))


COMPARE = "app.graph._nodes.find(n=>n.type==='LAFR_Compare')"
UNDER_SLIDER = f"""[...(document.querySelector(`[data-node-id="${{{COMPARE}.id}}"]`)?.querySelectorAll('img') ?? [])]
  .filter(i=>i.naturalWidth===1280).length"""
"""Photos under the compare node's slider; the sheet is of another width."""


async def opens(tab: Visit, file: Path, shown: str) -> None:
    """The workflow is all there: known nodes, the file's graph, boxes as sockets, six widgets, nothing over another."""
    page, workflow = tab.page, json.loads(file.read_text(encoding="utf-8"))
    await page.open(workflow)
    assert await page.run("app.graph._nodes.map(n=>n.type).filter(t=>!LiteGraph.registered_node_types[t])") == []
    exported = json.loads(await page.run("(async()=>JSON.stringify((await app.graphToPrompt()).output))()"))
    expected = hostenv.to_graph(tab.address, workflow)
    assert {number: plain(node) for number, node in exported.items()} == {n: plain(node) for n, node in expected.items()}
    assert set(await page.run(BOX_SOCKETS)) <= {"socket"}
    assert await page.run(OVERLAPPING) == []
    assert all(count <= 6 for count in await page.run(shown))


async def runs(tab: Visit, shot: Path) -> None:
    """Press Run; then the result is shown, still nothing over another."""
    await queue(tab.address, tab.page)
    await tab.page.run(browser.FIT)
    await asyncio.sleep(2)
    assert await tab.page.run(OVERLAPPING) == []
    await tab.page.screenshot(shot)


def shots_name(address: str) -> str:
    return "ComfyUI-" + str(hostenv.get(address, "/system_stats")["system"]["comfyui_version"])


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_a_nodes_help_page_opens_in_the_persons_language(classic: Visit, shots: Path, language: str) -> None:
    async def look() -> None:
        await classic.page.run(f"app.extensionManager.setting.set('Comfy.Locale', {language!r})")
        await classic.page.open(json.loads(WORKFLOWS[1].read_text(encoding="utf-8")))
        await help_page(classic.page, LOOKS_PASTED[language])
        await classic.page.screenshot(shots / f"{shots_name(classic.address)}_help_{language}.png")

    try:
        classic.do(look())
    finally:
        classic.do(classic.page.run("app.extensionManager.setting.set('Comfy.Locale', 'en')"))


LOOKS_PASTED = {
    "en": "Looks pasted?",
    "zh": "看起来像贴上去的",
    "ja": "貼ったように見えるとき",
}
"""A heading of Face Paste's help page."""


@pytest.mark.parametrize("source", ["MediaPipeFaceLandmarker", "RTDETR_detect", "PrimitiveBoundingBox", "LAFR_DetectFaces"])
@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_boxes_of_face_nodes_connect_by_hand(tab: Visit, nodes2: bool, source: str) -> None:
    """The mouse draws the link from the node's box output to ours, and the link is what the page then sends."""
    if nodes2:
        switch_on(tab)
    else:
        tab.do(tab.page.nodes2(False))
    if source not in tab.infos:
        pytest.skip(f"this ComfyUI has no {source}")

    async def connect() -> list[Any]:
        await tab.page.run(f"({PAIR})({source!r}, 'LAFR_RestoreFaces', 700)")
        await tab.page.run(browser.FIT)
        await asyncio.sleep(2)
        output = next(iter(await tab.page.run(BOX_OUTPUT)))
        await tab.page.connect(1, output, 2, "bounding_boxes")
        return await tab.page.run("(()=>{const i=app.graph.getNodeById(2).inputs.find(i=>i.name==='bounding_boxes');"
            "const l=i.link==null?null:app.graph.getLink(i.link); return l?[l.origin_id,l.type]:[]})()")  # fmt: skip

    assert [str(part) for part in tab.do(connect())] == ["1", "BOUNDING_BOX"]


PAIR = """(first, second, apart) => { app.graph.clear(); const a=LiteGraph.createNode(first), b=LiteGraph.createNode(second);
  a.id=1; b.id=2; a.pos=[0,0]; b.pos=[apart,0]; app.graph.add(a); app.graph.add(b) }"""
"""Two nodes on an empty canvas, numbers 1 and 2."""
BOX_OUTPUT = "app.graph.getNodeById(1).outputs.filter(o=>o.type==='BOUNDING_BOX').map(o=>o.name)"


def test_a_blueprint_is_found_placed_connected_by_hand_and_runs(classic: Visit, shots: Path) -> None:
    """By the host's own search box, as a person places it."""
    blueprints = hostenv.get(classic.address, "/global_subgraphs") if "ImageCompare" in classic.infos else {}
    if not any("LAFR" in one["name"] for one in blueprints.values()):
        pytest.skip("this ComfyUI has no blueprints")

    async def place() -> None:
        page = classic.page
        await page.run(f"({PAIR})('LAFR_SamplePhoto', 'SaveImage', 1400)")
        await page.run("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        await page.until("document.activeElement?.placeholder?.startsWith('Add a node')", seconds=60)
        await page.command("Input.insertText", text="Restore Faces step by step")
        await page.until("document.querySelector('[role=option]')?.innerText.includes('Restore Faces step by step (LAFR)')")
        for kind in ("keyDown", "keyUp"):
            await page.command("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
        await page.until("app.graph._nodes.some(n=>n.isSubgraphNode?.())", seconds=60)
        await page.drag({"x": 900, "y": 800}, {"x": 900, "y": 800})  # it hangs on the mouse until a click sets it down
        placed = await page.run("(()=>{const n=app.graph._nodes.find(n=>n.isSubgraphNode()); n.pos=[600,0]; return n.id})()")
        await page.run(browser.FIT)
        await asyncio.sleep(2)
        for link in ((placed, "image", 2, "images"), (1, "image", placed, "image")):
            for _ in range(3):  # the canvas may take the first stroke after the search box for itself: draw it again
                if not await page.run(f"app.graph.getNodeById({link[2]}).inputs[0].link != null"):
                    await page.connect(*link)
                    await asyncio.sleep(1)
        await runs(classic, shots / f"{shots_name(classic.address)}_blueprint.png")

    classic.do(place())


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
    await page.until(f"({SAVED})()", seconds=60)


SAVED = """() => app.graph._nodes.some(n => ['SaveImage', 'SaveVideo'].includes(n.type) &&
  (app.nodeOutputs[n.id] ?? app.nodeOutputs[String(n.id)])?.images?.length)"""


SELECT = """(()=>{const n=app.graph._nodes.find(n=>n.type==='LAFR_FacePaste');
  app.canvas.selectNode(n); app.canvas.setDirty(true,true); return !!n})()"""
PRESS_HELP = """(()=>{const b=document.querySelector('[data-testid=info-button]'); if(b) b.click(); return !!b})()"""
PICTURE_SHOWN = "[...document.querySelectorAll('img')].some(i=>i.src.includes('/docs/assets/') && i.naturalWidth>0)"


async def help_page(page: browser.Page, heading: str) -> None:
    """Select a node and open its help: our page with its picture, not the frontend's generic one."""
    press = f"{SELECT} && {PRESS_HELP}"  # selected anew each time: a new language draws the nodes again
    shown = f"document.body.innerText.includes({heading!r})"
    await page.until(press, seconds=60)
    try:
        await page.until(shown, seconds=30)
    except AssertionError:  # older frontends' button closes a page that is open
        await page.until(press, seconds=60)
        await page.until(shown, seconds=30)
    await page.until(PICTURE_SHOWN, seconds=30)


def plain(node: dict[str, Any]) -> dict[str, Any]:
    """A node as exported, without the inputs that only the frontend's own previews have, and those that newer hosts hide."""
    shown = {"PreviewAny": ("preview", "preview_markdown", "preview_text", "preview_mode"), "SaveVideo": ("codec",)}
    inputs = {name: value for name, value in node["inputs"].items() if name not in shown.get(node["class_type"], ())}
    return {"class_type": node["class_type"], "inputs": inputs}
