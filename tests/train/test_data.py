"""What a run sees: the same pictures and degradations whatever the workers, processes and interruptions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from train_tiny import faces_at

from lafr_core.errors import InputError
from train.config import Data
from train.data import faces as data


def take(faces: data.Faces, count: int, **arguments: int) -> list[dict[str, torch.Tensor]]:
    settings = {"batch": 2, "accumulate": 1, **arguments}
    return list(itertools.islice(data.stream(faces, settings.pop("step", 0), **settings), count))  # type: ignore[arg-type]


def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


@pytest.fixture
def faces(tmp_path: Path) -> data.Faces:
    return data.open_faces(Data(source=str(faces_at(tmp_path, 5)), size=32, workers=0), seed=3)[0]


def test_samples_do_not_depend_on_workers(faces: data.Faces) -> None:
    assert same(take(faces, 4, workers=0), take(faces, 4, workers=2))


def test_two_ranks_see_what_one_process_sees_with_twice_the_accumulation(faces: data.Faces) -> None:
    one = take(faces, 6, accumulate=2)
    two = [take(faces, 3, rank=rank, world=2) for rank in (0, 1)]
    assert same(one, [batch for pair in zip(*two, strict=True) for batch in pair])


def test_a_resumed_stream_goes_on_where_it_was(faces: data.Faces) -> None:
    assert same(take(faces, 6, accumulate=2)[4:], take(faces, 2, accumulate=2, step=2))


def test_every_epoch_shows_every_picture_once_in_another_order(faces: data.Faces) -> None:
    order = [faces.locate(p) for p in range(15)]
    epochs = [[index for epoch, index in order if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seed_and_epoch_change_the_degradation_and_parameters_are_recorded(faces: data.Faces) -> None:
    first = faces[0]
    again = data.Faces(faces.pictures, faces.data, seed=3)[0]
    assert torch.equal(first["lq"], again["lq"])
    positions = [p for p in range(15) if faces.locate(p)[1] == faces.locate(0)[1]]
    assert not torch.equal(faces[positions[0]]["lq"], faces[positions[1]]["lq"])
    quality = float(first["drawn"][data.DRAWN_PARAMETERS.index("quality")])
    assert 30 <= quality <= 100 and first["hq"].shape == first["lq"].shape == (3, 32, 32)


def test_loading_leaves_the_global_generator_alone(faces: data.Faces) -> None:
    before = torch.get_rng_state()
    take(faces, 2)
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 50))
def test_positions_of_all_ranks_cover_the_stream_without_gaps(batch: int, accumulate: int, world: int, step: int) -> None:
    ranks = [data.positions(step, batch=batch, accumulate=accumulate, rank=r, world=world) for r in range(world)]
    seen = sorted(p for rank in ranks for part in itertools.islice(rank, accumulate) for p in part)
    size = batch * accumulate * world
    assert seen == list(range(step * size, (step + 1) * size))


def test_subset_is_reproducible_and_written_out(tmp_path: Path) -> None:
    pictures = data.find_pictures("drawn:70000")
    chosen = data.choose(pictures, 0.009, 0, "random")
    assert len(chosen) == 630 and chosen == data.choose(pictures, 0.009, 0, "random")
    assert chosen != data.choose(pictures, 0.009, 1, "random")
    data.write_list(tmp_path / "files.txt", chosen)
    assert (tmp_path / "files.txt").read_text().splitlines() == [p.name for p in chosen]


def test_k_centre_takes_the_farthest_each_time() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [10.0, 0.0], [10.1, 0.0], [4.0, 9.0]])
    assert data.k_centre(points, 3, first=1).tolist() == [1, 3, 4]
    pictures = data.find_pictures("drawn:5")
    chosen = data.choose(pictures, 0.6, 0, "k-centre", lambda _: points)
    assert {p.number // 2 for p in chosen} == {0, 1, 2}  # one of each cluster


def test_several_sources_are_read_one_after_the_other_and_told_apart_by_name(tmp_path: Path) -> None:
    for name, count in (("one", 2), ("two", 1)):
        faces_at(tmp_path / name, count)
    both = data.find_pictures(f"{tmp_path / 'one'}; {tmp_path / 'two'};drawn:1")
    assert [p.name for p in both] == ["one/000.png", "one/inner/001.png", "two/000.png", "drawn:1/drawn 0"]
    assert both[2].path == tmp_path / "two" / "000.png" and both[3].path is None
    with pytest.raises(InputError, match=r"found none at '.*three'"):
        data.find_pictures(f"{tmp_path / 'one'};{tmp_path / 'three'}")


def test_balance_draws_every_value_of_a_column_equally_often(tmp_path: Path) -> None:
    faces_at(tmp_path, 5)
    names = ["000.png", "inner/001.png", "002.png", "inner/003.png", "004.png"]
    rows = zip(names, ("23", "29", "20", "61", "NA"), "aabab", strict=True)
    (tmp_path / "manifest.csv").write_text("file,age,group\n" + "".join(f"{n},{a},{g}\n" for n, a, g in rows))
    place = lambda **more: data.open_faces(Data(source=str(tmp_path), size=32, workers=0, **more), seed=0)[0].pictures
    numbers = lambda pictures: [names.index(p.name) for p in pictures]
    assert numbers(place()) == [0, 1, 2, 3, 4]
    assert numbers(place(balance="age")) == [0, 1, 2, 3, 3, 3, 4, 4, 4]  # the twenties, the sixties, not known
    assert numbers(place(balance="group")) == [0, 1, 3, 2, 4, 2]
    with pytest.raises(InputError, match="expected a column of the face list, got 'gender'; there is age, file, group"):
        place(balance="gender")
    with pytest.raises(InputError, match="there is none at all"):
        data.open_faces(Data(source="drawn:2", balance="age"), seed=0)


def test_corrupt_files_are_skipped_by_name_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faces_at(tmp_path, 3)
    (tmp_path / "zero.png").touch()
    whole = (tmp_path / "000.png").read_bytes()
    (tmp_path / "inner" / "cut.png").write_bytes(whole[: len(whole) // 2])
    faces, skipped = data.open_faces(Data(source=str(tmp_path), size=32), seed=0)
    assert sorted(skipped) == ["inner/cut.png", "zero.png"] and len(faces) == 3
    assert "2 of 5 pictures skipped" in caplog.text


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in it or below"):
        data.find_pictures(str(tmp_path))
    with pytest.raises(InputError, match="expected a folder of face pictures, found none at ''"):
        data.find_pictures("")
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(InputError, match="none of the 1 pictures can be decoded"):
        data.open_faces(Data(source=str(tmp_path)), seed=0)


def test_mixed_sizes_become_one(tmp_path: Path) -> None:
    from PIL import Image

    red = np.zeros((40, 90, 3), dtype=np.uint8)
    red[:, 25:65, 0] = 255  # the middle square
    Image.fromarray(red).save(tmp_path / "wide.png")
    Image.fromarray(np.full((33, 31), 128, dtype=np.uint8)).save(tmp_path / "gray.png")
    faces, _ = data.open_faces(Data(source=str(tmp_path), size=32, flip=0), seed=0)
    shapes = {tuple(faces[p]["hq"].shape) for p in range(2)}
    assert shapes == {(3, 32, 32)}
    wide = next(p for p in faces.pictures if p.name == "wide.png")
    assert data.load_picture(wide, 32).mean((0, 1)).tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_manifest_hash_changes_with_the_files(tmp_path: Path) -> None:
    faces_at(tmp_path, 3)
    pictures = data.find_pictures(str(tmp_path))
    first = data.manifest_hash(pictures)
    assert first == data.manifest_hash(data.find_pictures(str(tmp_path)))
    assert first != data.manifest_hash(pictures[:2])


def test_tar_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    import io
    import tarfile

    from train.data.drawn import draw_face

    folder, tars = tmp_path / "plain", tmp_path / "tars"
    folder.mkdir()
    tars.mkdir()
    for number in range(3):
        Image.fromarray((draw_face(number, 64) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    for name, numbers in (("a.tar", (0, 1)), ("b.tar", (2,))):
        with tarfile.open(tars / name, "w") as archive:
            for number in numbers:
                archive.add(folder / f"{number}.png", f"{number}.png")
                note = tarfile.TarInfo(f"{number}.json")
                note.size = 2
                archive.addfile(note, io.BytesIO(b"{}"))
    ours, theirs = data.find_pictures(str(tars)), data.find_pictures(str(folder))
    assert [p.name for p in ours] == ["a.tar/0.png", "a.tar/1.png", "b.tar/2.png"]
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(data.load_picture(a, 64), data.load_picture(b, 64))
    assert data.find_pictures(str(tars / "b.tar")) == ours[2:]
    assert data.readable(ours) == (ours, [])
    assert data.manifest_hash(ours) != data.manifest_hash(ours[:2])
    (tars / "c.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"c\.tar: not a readable tar shard"):
        data.find_pictures(str(tars))


def test_parquet_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from train.data.drawn import draw_face

    rows = []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        Image.fromarray((draw_face(number, 64) * 255).astype(np.uint8)).save(file)
        rows.append({"bytes": file.read_bytes(), "path": file.name})
        file.unlink()
    parquet.write_table(pyarrow.table({"image": rows, "label": [0, 1, 2]}), tmp_path / "a.parquet", row_group_size=2)
    pictures = data.find_pictures(str(tmp_path))
    assert [p.name for p in pictures] == ["a.parquet/0.0", "a.parquet/0.1", "a.parquet/1.0"]
    assert np.allclose(data.load_picture(pictures[2], 64), draw_face(2, 64), atol=1 / 255)


def test_pictures_are_upright_and_16_bit_ones_are_right(tmp_path: Path) -> None:
    """Training reads as the product does: EXIF orientation applied, 16 bits scaled and not cut."""
    import torch
    from PIL import Image

    from lafr_core.images import photos
    from train.data.faces import Picture, load_picture

    tall = np.zeros((96, 64, 3), dtype=np.uint8)
    tall[20:36] = 255  # a bright row as stored: a column when turned
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(tall).save(tmp_path / "turned.png", exif=exif)
    turned = load_picture(Picture("turned.png", tmp_path / "turned.png"), 64)
    assert turned.shape == (64, 64, 3) and turned[:, 46:58].min() > 0.9 and turned[:, :40].max() < 0.1
    deep = photos.Photo(torch.full((3, 64, 64), 0.25), bits=16)
    photos.write(tmp_path / "deep.png", deep)
    assert abs(float(load_picture(Picture("deep.png", tmp_path / "deep.png"), 64).mean()) - 0.25) < 0.01
