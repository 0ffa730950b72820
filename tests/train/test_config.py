"""The run record: YAML and command line in, one sentence out for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from lafr_core.errors import SettingsError
from train import config


def test_overrides_win_over_the_file_and_short_names_work(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 4\nadapter: {lr: 1e-3, batch: 2}\nnetwork: {prior_widths: [8, 16, 24]}\n")
    conf = config.parse(["--config", str(file), "--adapter.lr", "1e-4", "--subset=0.009", "--subset-seed", "7"])
    assert (conf.seed, conf.adapter.lr, conf.adapter.batch) == (4, 1e-4, 2)
    assert (conf.data.subset, conf.data.subset_seed) == (0.009, 7)
    assert conf.network.prior_widths == (8, 16, 24)


def test_yaml_round_trip_is_exact(tmp_path: Path) -> None:
    conf = config.parse(
        ["--codebook.kmeans_at", "[0, 5]", "--prior.precision", "bf16", "--loss.identity", "0.3", "--name", "7"]
    )
    file = tmp_path / "dump.yaml"
    file.write_text(config.dump(conf))
    assert config.parse(["--config", str(file)]) == conf
    assert conf.name == "7" and conf.codebook.kmeans_at == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter.learning_rat", "1"], "unknown setting"),
        (["--adapter.stepss", "1"], "did you mean 'adapter.steps'"),
        (["--subst", "0.1"], "did you mean 'subset'"),
        (["--lr", "1"], "occurs in several sections; write one of --vae.lr, --thumbnail.lr, --codebook.lr"),
        (["--data.severity", "worse"], "one of full, mild, medium, severe, mix, gfpgan, codeformer, osediff, got worse"),
        (["--data.window", "65"], r"data\.window: expected 0 to 64 cells, got 65"),
        (["--data.window", "22", "--data.around", "20"], r"data\.around: expected 0, or data\.window and more, got 20"),
        (["--critic.features", "vgg"], "efficientnet-lite0, efficientnet-lite2 or random, got vgg"),
        (["--log.best", "loss"], "one of psnr, ssim, identity, sharpness, landmarks, perceptual, niqe, got loss"),
        (["--adapter.lr", "fast"], r"adapter\.lr: expected a number, got 'fast'"),
        (["--adapter.batch", "1.5"], r"adapter\.batch: expected a whole number, got 1\.5"),
        (["--adapter.train_mapping", "3"], "expected true or false, got 3"),
        (["--subset", "0"], r"data\.subset: expected a share in \(0, 1\], got 0"),
        (["--data.size", "100"], "a positive multiple of 32, got 100"),
        (["--prior.precision", "fp8"], "no, bf16 or fp16, got fp8"),
        (["--prior.timestep", "1000"], "0 to 999"),
        (["--closeup.optimizer", "sgd"], r"closeup\.optimizer: expected adamw, adamw8bit or muon, got sgd"),
        (["--detector.canvas", "100"], r"detector\.canvas: expected a positive multiple of 32, got 100"),
        (["--landmarks.mix", "1.5"], r"landmarks\.mix: expected a share in \[0, 1\], got 1\.5"),
        (["--loss.pixel", "-1"], r"loss\.pixel: expected 0 or more"),
        (["--network.top_k", "5000"], "1 to network.entries = 1024"),
        (["adapter"], "expected --section.name value, got 'adapter'"),
        (["--seed"], "--seed needs a value"),
        (["--config", "/nowhere.yaml"], "expected a readable YAML file"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config.parse(arguments)


def test_unknown_keys_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("adapter: {stes: 3}\n")
    with pytest.raises(SettingsError, match=r"adapter\.stes: unknown setting; did you mean 'steps'"):
        config.parse(["--config", str(file)])
    file.write_text("- 1\n")
    with pytest.raises(SettingsError, match="expected sections such as data: and adapter:, got list"):
        config.parse(["--config", str(file)])
    file.write_text("adapter: 3\n")
    with pytest.raises(SettingsError, match="adapter: expected a section with names and values, got 3"):
        config.parse(["--config", str(file)])


CONFIGS = Path(__file__).parents[2] / "train" / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_configs_are_valid(file: Path) -> None:
    conf = config.parse(["--config", str(file)])
    assert conf.name == file.stem
    assert conf.network.grid == conf.data.size // 8


def test_precision_no_is_the_word_whatever_yaml_makes_of_it(tmp_path: Path) -> None:
    assert config.parse(["--prior.precision", "no"]).prior.precision == "no"
    file = tmp_path / "run.yaml"
    file.write_text("prior: {precision: no}\npairs: {precision: no}\n")
    conf = config.parse(["--config", str(file)])
    assert (conf.prior.precision, conf.pairs.precision) == ("no", "no")
    with pytest.raises(SettingsError, match="expected text, got False"):
        config.parse(["--name", "no"])
