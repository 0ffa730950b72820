"""Our weight files say what they are; everything else is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lafr_core.errors import CheckpointError
from lafr_core.store import checkpoint


class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width)
        self.norm = nn.BatchNorm1d(width)  # holds an integer buffer


def saved(path: Path, kind: str = "prior", net: nn.Module | None = None, **notes: str) -> Path:
    checkpoint.save(path, kind, net or Net(), {"width": 3}, notes)
    return path


def test_save_and_load_round_trip_as_fp16(tmp_path: Path) -> None:
    net = Net()
    path = saved(tmp_path / "net.safetensors", net=net, licence="MIT")
    with safe_open(str(path), "pt") as file:
        assert file.get_tensor("linear.weight").dtype == torch.float16
        assert file.get_tensor("norm.num_batches_tracked").dtype == torch.int64
        assert file.metadata() == {
            "lafr_kind": "prior", "lafr_version": "1", "lafr_config": '{"width": 3}', "licence": "MIT",
        }  # fmt: skip
    loaded = checkpoint.load(path, "prior")
    assert loaded.kind == "prior" and loaded.config == {"width": 3} and loaded.notes == {"licence": "MIT"}
    again = checkpoint.restore_network(Net(**loaded.config), loaded, path)
    assert isinstance(again, Net) and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.linear.weight.dtype == torch.float32
    assert torch.equal(again.linear.weight, net.linear.weight.half().float())


def test_notes_do_not_say_what_a_file_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors", lafr_kind="vae", lafr_version="7", lafr_config="{}")
    loaded = checkpoint.load(path, "prior")
    assert loaded.config == {"width": 3} and loaded.notes == {}


def test_saving_does_not_touch_the_network(tmp_path: Path) -> None:
    net = Net()
    before = net.linear.weight.clone()
    saved(tmp_path / "net.safetensors", net=net)
    assert net.linear.weight.dtype == torch.float32 and torch.equal(net.linear.weight, before) and net.training


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "net.safetensors")
    old = path.read_bytes()

    def interrupted(_: Any, filename: str, **__: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_unknown_kinds_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected one of detector, vae, adapter, .*, got 'net'"):
        saved(tmp_path / "net.safetensors", kind="net")
    assert not list(tmp_path.iterdir())


def write(path: Path, metadata: dict[str, str] | None) -> Path:
    save_file({"a": torch.zeros(1)}, str(path), metadata=metadata)
    return path


GOOD = {"lafr_kind": "prior", "lafr_version": "1", "lafr_config": "{}"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "expected a LAFR prior file, got a safetensors file without LAFR metadata"),
        ({"format": "pt"}, "expected a LAFR prior file, got a safetensors file without LAFR metadata"),
        ({**GOOD, "lafr_kind": "vae"}, "expected a LAFR prior file, got a vae file; pass it as the vae instead"),
        ({**GOOD, "lafr_version": "2"}, "format version '2', this LAFR reads up to 1; update LAFR"),
        ({**GOOD, "lafr_version": "new"}, "format version 'new'"),
        ({**GOOD, "lafr_version": "1" * 6000}, "format version '11111111111111111111', this LAFR"),
        ({**GOOD, "lafr_config": "{"}, "no readable lafr_config; export it again"),
        ({"lafr_kind": "prior", "lafr_version": "1"}, "no readable lafr_config"),
    ],
)
def test_files_of_another_kind_are_refused(metadata: dict[str, str] | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: .*{message}"):
        checkpoint.load(write(tmp_path / "net.safetensors", metadata), "prior")


@pytest.mark.parametrize("cut", [0, 4, 40, -1], ids=["empty", "in the length", "in the header", "one byte short"])
def test_damaged_files_are_refused(cut: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        CheckpointError, match=r"net\.safetensors: not a readable safetensors file \(.*\); fetch or export it again"
    ):
        checkpoint.load(path, "prior")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(
            CheckpointError, match=r"expected a LAFR prior file \(.safetensors\), found no file there; check the path"
        ):
            checkpoint.load(path, "prior")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "exploded").touch, ())

    torch.save({"a": Bomb()}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        checkpoint.load(tmp_path / "net.safetensors", "prior")
    assert not (tmp_path / "exploded").exists()


def test_weights_that_do_not_fit_or_hold_nan_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.safetensors")
    loaded = checkpoint.load(path, "prior")
    with pytest.raises(CheckpointError, match="tensors do not fit the network its config describes"):
        checkpoint.restore_network(Net(width=4), loaded, path)
    for other in (nn.Linear(2, 3), nn.Sequential(Net(), Net())):  # of fewer tensors and of more
        with pytest.raises(CheckpointError, match="tensors do not fit the network its config describes"):
            checkpoint.restore_network(other, loaded, path)
    broken = Net()
    with torch.no_grad():
        broken.linear.bias[1] = torch.nan
    loaded = checkpoint.load(saved(path, net=broken), "prior")
    with pytest.raises(CheckpointError, match=r"tensor linear\.bias holds NaN or infinite values; export it again"):
        checkpoint.restore_network(Net(), loaded, path)


@pytest.mark.parametrize("config", ["[]", "null", "3", "{", "[" * 100_000, None])
def test_a_config_that_is_none_is_refused_when_the_file_is_read(config: str | None, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    known = {"lafr_kind": "prior", "lafr_version": "1"}
    save_file({"a": torch.zeros(1)}, path, metadata=known if config is None else {**known, "lafr_config": config})
    with pytest.raises(CheckpointError, match="its metadata holds no readable lafr_config; export it again"):
        checkpoint.load(path, "prior")


def test_the_config_is_sorted_json(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.safetensors", "vae", Net(), {"b": 1, "a": [2, {"c": None}]})
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert file.metadata()["lafr_config"] == '{"a": [2, {"c": null}], "b": 1}'
    assert checkpoint.load(tmp_path / "a.safetensors", "vae").config == json.loads('{"b": 1, "a": [2, {"c": null}]}')
