"""What the nodes declare: ids for ever, every word explained, widgets as the settings say, nothing an older host chokes on."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stub_host

ROOT = Path(__file__).parents[2]

IDS = {
    "LAFR_DetectFaces": "LQ Face Detect",
    "LAFR_AlignLatent": "LAFR Align Latent",
    "LAFR_IdentitySampler": "Identity-Guided Sampler",
    "LAFR_FacePaste": "Face Paste",
    "LAFR_LoadAdapter": "LAFR Load Adapter",
    "LAFR_LoadStarter": "LAFR Load Starter",
    "LAFR_IdentityGuidance": "LAFR Identity Guidance",
    "LAFR_RestoreFaces": "Restore Faces (LAFR)",
    "LAFR_IdentityScore": "LAFR Identity Score",
    "LAFR_LoadFolder": "LAFR Load Folder",
    "LAFR_SamplePhoto": "Sample Photo (LAFR)",
    "LAFR_Compare": "Compare Before/After (LAFR)",
    "LAFR_RestoreClip": "Restore Clip (LAFR)",
    "LAFR_RestoreVideo": "Restore Video (LAFR)",
}
"""Saved workflows hold these ids: a line may be added, never changed."""


@pytest.fixture(scope="module")
def schemas(stub_nodes: Any) -> dict[str, Any]:
    nodes = asyncio.run(stub_nodes.LafrExtension().get_node_list())
    made = [node.define_schema() for node in nodes]
    return {schema.node_id: schema for schema in made}


def test_ids_and_titles(schemas: dict[str, Any]) -> None:
    assert {node_id: schema.display_name for node_id, schema in schemas.items()} == IDS


def test_everything_is_explained(schemas: dict[str, Any]) -> None:
    for node_id, schema in schemas.items():
        assert schema.category == "LAFR" and len(schema.description) > 20
        for thing in [*schema.inputs, *schema.outputs]:
            assert len(thing.kwargs.get("tooltip", "")) > 8, (node_id, thing.id)
        ids = [thing.id for thing in [*schema.inputs, *schema.outputs]]
        assert len(ids) == len(set(ids)), node_id
        assert all(output.kwargs.get("display_name") for output in schema.outputs)


def test_widgets_are_the_settings(schemas: dict[str, Any], stub_nodes: Any) -> None:
    from lafr_stub.lafr_core.settings import options

    shared = {name: (option, default) for name, (option, default) in options().items()}
    seen = set()
    for schema in schemas.values():
        for declared in schema.inputs:
            if declared.id not in shared or declared.io_type.startswith(("LAFR", "IMAGE")):
                continue
            option, default = shared[declared.id]
            seen.add(declared.id)
            shown = declared.kwargs
            assert (shown["default"], shown["display_name"], shown["tooltip"]) == (default, option.label, option.help)
            assert (shown.get("min"), shown.get("max"), shown.get("step")) == (option.low, option.high, option.step)
            if option.choices:
                assert tuple(shown["options"]) == option.choices
    assert seen == set(shared)


def test_the_whole_job_offers_every_setting(schemas: dict[str, Any], stub_nodes: Any) -> None:
    from lafr_stub.lafr_core.settings import options

    assert set(options()) <= {declared.id for declared in schemas["LAFR_RestoreFaces"].inputs}


def test_inputs_match_what_execute_takes(schemas: dict[str, Any], stub_nodes: Any) -> None:
    import inspect

    for node in stub_nodes.NODES:
        schema = schemas[node.define_schema().node_id]
        parameters = inspect.signature(node.execute).parameters
        declared = {one.id for one in schema.inputs}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        assert named <= declared, schema.node_id
        assert takes_all or named == declared, schema.node_id
        optional = {one.id for one in schema.inputs if one.kwargs.get("optional")}
        assert {name for name, p in parameters.items() if p.default is None} == optional, schema.node_id


def test_search_aliases_only_where_the_host_knows_them(schemas: dict[str, Any]) -> None:
    newer = stub_host.load(newer=True)
    assert all(len(node.define_schema().search_aliases) >= 3 for node in newer.NODES)
    assert not any(hasattr(schema, "search_aliases") for schema in schemas.values())


def test_no_widget_takes_a_path(schemas: dict[str, Any]) -> None:
    free = [
        (s.node_id, i.id)
        for s in schemas.values()
        for i in s.inputs
        if i.io_type == "STRING" and not i.kwargs.get("force_input")
    ]
    assert sorted(free) == [
        (f"LAFR_{node}", "faces") for node in ("DetectFaces", "RestoreClip", "RestoreFaces", "RestoreVideo")
    ]


def test_only_safetensors_are_offered_as_adapters(schemas: dict[str, Any]) -> None:
    (choice,) = schemas["LAFR_LoadAdapter"].inputs
    families = ["starter (bundled)", "sdxl (bundled)", "sd3 (bundled)", "flux (bundled)"]
    assert choice.kwargs["options"] == [*families, "other.safetensors"] and choice.kwargs["default"] == families[0]


def test_the_model_folder_is_merged_and_not_created(tmp_path: Path) -> None:
    nodes = stub_host.load(models=tmp_path)
    load = sys.modules[nodes.register_folder.__module__]
    table = load.folder_paths.folder_names_and_paths
    table["lafr"] = (["/users/own/folder"], set())  # as extra_model_paths.yaml leaves it
    nodes.register_folder()
    assert table["lafr"][0] == ["/users/own/folder", str(tmp_path / "lafr")]
    assert ".safetensors" in table["lafr"][1]
    assert not (tmp_path / "lafr").exists()


def test_importing_the_pack_imports_no_host_and_no_network_code() -> None:
    code = (
        "import importlib.util, sys; "
        f"root = {str(ROOT)!r}; "
        "s = importlib.util.spec_from_file_location('p', root + '/__init__.py', submodule_search_locations=[root]); "
        "m = importlib.util.module_from_spec(s); sys.modules['p'] = m; s.loader.exec_module(m); "
        "assert not hasattr(m, 'NODE_CLASS_MAPPINGS') and m.WEB_DIRECTORY == './web'; "
        "bad = [n for n in ('torch', 'comfy', 'comfy_api', 'urllib.request', 'diffusers') if n in sys.modules]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("language", ["en", "de"])
def test_locales_name_everything(schemas: dict[str, Any], language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) == set(IDS)
    for node_id, schema in schemas.items():
        entry = texts[node_id]
        assert entry["display_name"] and entry["description"]
        assert set(entry.get("inputs", {})) == {one.id for one in schema.inputs}, node_id
        assert set(entry["outputs"]) == {str(number) for number in range(len(schema.outputs))}, node_id
        for text in [*entry.get("inputs", {}).values(), *entry["outputs"].values()]:
            assert text["name"] and text["tooltip"]
    if language == "en":
        for node_id, schema in schemas.items():
            assert texts[node_id]["description"] == schema.description
            for one in schema.inputs:
                assert texts[node_id]["inputs"][one.id]["tooltip"] == one.kwargs["tooltip"], (node_id, one.id)


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_further_locales_name_what_there_is(schemas: dict[str, Any], language: str) -> None:
    """What they lack the frontend shows in English; a text for an input that is no more would be a mistake."""
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) <= set(IDS) and len(texts) >= 12
    for node_id, entry in texts.items():
        assert entry["display_name"] and entry["description"]
        assert set(entry.get("inputs", {})) <= {one.id for one in schemas[node_id].inputs}, node_id
        assert set(entry["outputs"]) <= {str(number) for number in range(len(schemas[node_id].outputs))}, node_id
        for text in [*entry.get("inputs", {}).values(), *entry["outputs"].values()]:
            assert text["name"] and text["tooltip"]


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_help_pages_explain_every_input_and_output(schemas: dict[str, Any], node_id: str) -> None:
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {IDS[node_id]}\n")
    for thing in [*schemas[node_id].inputs, *schemas[node_id].outputs]:
        name = thing.kwargs.get("display_name") or thing.id
        assert f"| {name} |" in page, name
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert pictures
    for picture in pictures:
        assert (ROOT / "web" / "docs" / picture).is_file(), picture


@pytest.mark.parametrize("node_id", sorted(IDS))
@pytest.mark.parametrize("language", ["de", "zh", "ja"])
def test_help_pages_in_other_languages_say_what_the_widgets_say(language: str, node_id: str) -> None:
    """Their tables are the texts of the locale, so that a page and its node never contradict each other."""
    page = (ROOT / "web" / "docs" / node_id / f"{language}.md").read_text(encoding="utf-8")
    entry = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[node_id]
    rows = [f"| {one['name']} | {one['tooltip']} |" for part in ("inputs", "outputs") for one in entry.get(part, {}).values()]
    assert page.startswith(f"# {entry['display_name']}\n\n{entry['description']}\n")
    assert [line for line in page.splitlines() if line.startswith("| ") and line in rows] == rows
    # The frontend resolves a page's pictures against docs/, in whatever folder the page lies.
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert (ROOT / "web" / "docs" / picture).is_file(), picture


def workflows() -> list[Path]:
    return sorted((ROOT / "workflows").glob("*.json"))


def test_there_is_one_template_folder_with_seven_workflows() -> None:
    assert len(workflows()) == 7
    for other in ("example_workflows", "example", "examples", "workflow"):
        assert not (ROOT / other).exists(), "a second template folder hides the first one's files"
    for file in workflows():
        thumbnail = file.with_suffix(".jpg")
        assert thumbnail.is_file() and thumbnail.stat().st_size < 100_000


@pytest.mark.parametrize("file", workflows(), ids=lambda file: file.stem)
def test_workflows_use_registered_nodes_and_all_their_widgets(schemas: dict[str, Any], file: Path) -> None:
    workflow = json.loads(file.read_text(encoding="utf-8"))
    ours = [node for node in workflow["nodes"] if node["type"].startswith("LAFR")]
    assert ours
    for node in ours:
        schema = schemas[node["type"]]
        kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        widgets = [one for one in schema.inputs if one.io_type in kinds and not one.kwargs.get("force_input")]
        expected = sum(2 if one.kwargs.get("control_after_generate") else 1 for one in widgets)
        assert len(node.get("widgets_values", [])) == expected, node["type"]
        sockets = [one.id for one in schema.inputs if one not in widgets]
        assert [one["name"] for one in node["inputs"] if "widget" not in one] == sockets
        assert len(node["outputs"]) == len(schema.outputs)


def test_boxes_are_sockets_wherever_they_are_taken(schemas: dict[str, Any]) -> None:
    """Newer hosts make a widget of a BOUNDING_BOX that does not say forceInput, and send its default for an untouched node."""
    boxes = [(node_id, one) for node_id, schema in schemas.items() for one in schema.inputs if one.io_type == "BOUNDING_BOX"]
    assert {node_id for node_id, _ in boxes} == {"LAFR_DetectFaces", "LAFR_RestoreFaces"}
    assert all(one.kwargs["extra_dict"] == {"forceInput": True} for _, one in boxes)


def test_six_widgets_of_the_main_node_are_unfolded(schemas: dict[str, Any]) -> None:
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    widgets = [one for one in schemas["LAFR_RestoreFaces"].inputs if one.io_type in kinds]
    assert len([one for one in widgets if not one.extra_dict.get("advanced")]) == 6


@pytest.mark.parametrize("file", workflows(), ids=lambda file: file.stem)
def test_templates_start_from_what_comes_with_the_pack_and_say_what_they_need(file: Path) -> None:
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    types = {node["type"] for node in nodes}
    assert "LoadImage" not in types and types & {"LAFR_SamplePhoto", "LAFR_LoadFolder"}
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] == "Note"]
    assert ("NEEDS an SD 1.5 checkpoint" in note) == ("CheckpointLoaderSimple" in types)


def test_the_main_nodes_widgets_stay_where_saved_workflows_have_them(schemas: dict[str, Any]) -> None:
    """A workflow holds values by position: a new widget may only come after these."""
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    order = [one.id for one in schemas["LAFR_RestoreFaces"].inputs if one.io_type in kinds]
    first = "detector threshold min_face max_face sort top_k faces rotate detect_side small_faces fidelity strength mask"
    assert order[:21] == [
        *first.split(), "feather", "color", "grain", "identity_warning", "batch_size", "detail", "timestep", "reference_weight"
    ]  # fmt: skip


FIRST_INPUTS = {
    "LAFR_DetectFaces": "image detector threshold min_face max_face sort top_k faces rotate detect_side small_faces "
    "bounding_boxes",
    "LAFR_AlignLatent": "vae adapter fidelity batch_size faces crops",
    "LAFR_IdentitySampler": "model latent vae faces mode timestep steps cfg sampler_name scheduler denoise seed "
    "identity_weight start_percent end_percent batch_size positive negative references",
    "LAFR_FacePaste": "original faces restored strength mask feather color grain",
    "LAFR_LoadAdapter": "adapter",
    "LAFR_LoadStarter": "",
    "LAFR_IdentityGuidance": "model vae faces identity_weight start_percent end_percent references",
    "LAFR_IdentityScore": "image_a image_b",
    "LAFR_LoadFolder": "folder",
}
"""The inputs that the first users' workflows name (commit 1d8f28d). None was renamed, so no replacement is registered."""


@pytest.mark.parametrize("node_id", sorted(FIRST_INPUTS))
def test_no_input_that_a_saved_workflow_names_is_gone(schemas: dict[str, Any], node_id: str) -> None:
    """Renaming one needs a replacement (the host's node_replacement) and a line here."""
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    first, now = FIRST_INPUTS[node_id].split(), schemas[node_id].inputs
    assert set(first) <= {one.id for one in now}
    widgets = [one.id for one in now if one.io_type in kinds]
    assert widgets[: len([name for name in first if name in widgets])] == [name for name in first if name in widgets]


@pytest.mark.parametrize("file", workflows(), ids=lambda file: file.stem)
def test_templates_hold_the_defaults_of_the_main_node(schemas: dict[str, Any], file: Path) -> None:
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    defaults = [one.kwargs["default"] for one in schemas["LAFR_RestoreFaces"].inputs if one.io_type in kinds]
    for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] == "LAFR_RestoreFaces":
            assert node["widgets_values"] == defaults
