"""The gallery as people see it: one page from disk, in a real browser where one is at hand."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import arguments, cli, gallery
from lafr_core.app.report import face_entry
from lafr_core.store.outputs import Outputs


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([face_at(20, 30, 60)]))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def photo(path: Path, color: tuple[int, int, int], side: int = 120) -> Path:
    Image.new("RGB", (side, side), color).save(path)
    return path


def entry(name: str, status: str = "restored", output: str | None = None, **more: Any) -> dict[str, Any]:
    return {"input": name, "status": status, "output": output, "reason": None, "faces": [], "warnings": [], **more}


def page(folder: Path, entries: list[dict[str, Any]]) -> Path:
    path = folder / "g.html"
    gallery.write(path, {"lafr": "0.1.0", "settings": {}, "device": "cpu"}, entries, Outputs())
    return path


def pictures(text: str) -> list[dict[str, Any]]:
    return [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', text)]


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_command_writes_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", (200, 40, 40))
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    command = ["restore", str(tmp_path / "a.png"), str(tmp_path / "b.jpg"), "-o", str(tmp_path / "out")]
    command += ["--gallery", str(tmp_path / "g.html")]
    assert cli.main(command) == 1
    text = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", text) and "@import" not in text
    (shown,) = pictures(text)
    assert opened(shown["before"]).size == (120, 120) and len(shown["faces"]) == 1
    assert text.index("b.jpg") < text.index("a.png") and "not an image" in text  # what failed comes first
    assert cli.main(command) == 2  # a page is not replaced ...
    assert cli.main([*command, "--resume"]) == 1 and pictures((tmp_path / "g.html").read_text())  # ... but by the resumed run
    (tmp_path / "g.html").write_text("my own page")
    assert cli.main([*command, "--resume"]) == 2 and (tmp_path / "g.html").read_text() == "my own page"


def test_doubtful_photos_come_first_with_their_numbers(tmp_path: Path) -> None:
    photo(tmp_path / "x.png", (10, 20, 30))
    face = {**face_entry(replace(face_at(20, 30, 60), change=0.91, trust=0.41, likeness=0.73, person="Ada"))}
    path = str(tmp_path / "x.png")
    entries = [
        entry("sure.jpg"),
        entry("warned.jpg", warnings=["face 0: look at it"]),
        entry("doubtful.jpg", output=path, faces=[face], input=path),
        entry("failed.jpg", "failed", reason="is empty"),
    ]
    text = page(tmp_path, entries).read_text()
    places = [text.index(f">{name} <span") for name in ("failed.jpg", "warned.jpg", "x.png", "sure.jpg")]
    assert places == sorted(places)
    for piece in ("<dd>0.91</dd>", "<dd>0.41</dd>", "<dd>0.73</dd>", "a guess", "Ada", "face 0: look at it", "is empty"):
        assert piece in text


def test_crops_show_the_face_before_and_after(tmp_path: Path) -> None:
    before, after = photo(tmp_path / "b.png", (255, 0, 0)), photo(tmp_path / "a.png", (0, 0, 255), 240)
    face = face_entry(face_at(20, 30, 60))
    (shown,) = pictures(page(tmp_path, [entry(str(before), output=str(after), faces=[face])]).read_text())
    ((old, new),) = shown["faces"]
    assert opened(old).size == opened(new).size == (gallery.FACE, gallery.FACE)
    assert np.asarray(opened(old)).mean((0, 1)).round(-1).tolist() == [250, 0, 0]
    assert np.asarray(opened(new)).mean((0, 1)).round(-1).tolist() == [0, 0, 250]


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    picture = photo(tmp_path / "p.png", (1, 2, 3))
    evil = '</script><img src=x onerror=alert(1)>"&.jpg'
    text = page(tmp_path, [entry(evil, output=str(picture), warnings=[evil], reason=evil)]).read_text()
    assert "<img src=x" not in text and "&lt;img src=x" in text
    name = b"gr\xfc\xdfe.jpg".decode("utf-8", "surrogateescape")
    (tmp_path / "g.html").unlink()
    text = page(tmp_path, [entry(name, warnings=["two\nlines \x1b[31m red"])]).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "gr\\udcfc\\udcdfe.jpg" in text  # what the terminal says of it
    assert "two\\nlines \\x1b[31m red" in text


CHECK = """
<script>
window.onerror=function(m){document.title="ERROR "+m};
window.addEventListener("load",function(){setTimeout(function(){
  var cards=[].slice.call(document.querySelectorAll("article")),first=cards[0],out={};
  out.cards=cards.length;
  out.loaded=document.querySelectorAll("article img[src]").length;
  out.natural=(first.querySelector("img.after")||{}).naturalWidth;
  var range=first.querySelector("input[type=range]");range.value=20;
  range.dispatchEvent(new Event("input",{bubbles:true}));
  out.at=getComputedStyle(range.parentNode).getPropertyValue("--at").trim();
  out.tags=[0,50,100].map(function(v){
    range.value=v;range.dispatchEvent(new Event("input",{bubbles:true}));
    return [].map.call(first.querySelectorAll(".tag"),function(t){return getComputedStyle(t).display!=="none"});
  });
  var head=document.querySelector("header");
  out.measured=getComputedStyle(head).getPropertyValue("--head")===head.offsetHeight+"px";
  head.style.height="300px";window.dispatchEvent(new Event("resize"));
  out.below=parseFloat(getComputedStyle(first).scrollMarginTop)>=head.offsetHeight;
  document.querySelector("[data-filter=warned]").click();
  out.warned=cards.filter(function(c){return !c.hidden}).length;
  document.querySelector("[data-filter=all]").click();
  var find=document.getElementById("find");find.value="037.png";find.dispatchEvent(new Event("input"));
  out.found=cards.filter(function(c){return !c.hidden}).length;
  find.value="";find.dispatchEvent(new Event("input"));
  var sort=document.getElementById("sort");sort.value="name";sort.dispatchEvent(new Event("change"));
  out.first=document.querySelector("article h2").firstChild.data.trim();
  document.dispatchEvent(new KeyboardEvent("keydown",{key:"n",bubbles:true}));
  out.focused=document.activeElement.closest("article").id===document.querySelector("article").id;
  window.dispatchEvent(new Event("beforeprint"));
  out.print=document.querySelectorAll("article img[src]").length;
  document.body.innerHTML="<pre id=result>"+JSON.stringify(out)+"</pre>";
},1500)});
</script>
"""


def test_a_browser_shows_compares_filters_sorts_and_prints(tmp_path: Path) -> None:
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    entries = []
    for number in range(60):
        path = str(photo(tmp_path / f"{number:02}7.png" if number == 3 else tmp_path / f"{number:02}.png", (number, 90, 90)))
        entries.append(entry(path, output=path, faces=[face_entry(face_at(20, 30, 60))], warnings=["look"] * (number < 5)))
    path = page(tmp_path, entries)
    path.write_text(path.read_text().replace("</body>", CHECK + "</body>"))
    result = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1200,900", "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    found = re.search(r'<pre id="result">(.*?)</pre>', result.stdout)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    seen = json.loads(found.group(1))
    assert seen["cards"] == 60 and seen["natural"] == 120 and seen["at"] == "20%"
    assert 4 <= seen["loaded"] < 60 * 4  # only what is near the screen
    assert seen["warned"] == 5 and seen["found"] == 1 and seen["first"] == "00.png" and seen["focused"]
    assert seen["print"] == 60 * 4
    assert seen["tags"] == [[False, True], [True, True], [True, False]]  # no "before" on a picture that is all after
    assert seen["measured"] and seen["below"]  # a photo that is jumped to begins below the header, however many lines that has
