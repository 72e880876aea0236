"""The table of settings, and the configuration that it fills."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path

import pytest

from fastcl_cli.config import (
    IMAGENET_IMAGES,
    METHODS,
    Decay,
    Duration,
    LearningRate,
    Locals,
    Method,
    Ramp,
    RunConfig,
    TeacherTemperature,
)
from fastcl_cli.errors import ConfigError
from fastcl_cli.schedule import ScheduleError, compile_text, load
from fastcl_cli.schedule.load import Request
from fastcl_cli.schedule.settings import NONE, SETTINGS, settings_markdown

PHASE = "epochs 0-100: full;"


def config(text: str, **request: object) -> RunConfig:
    return compile_text(text + PHASE, request=Request(**request)).config  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_what_the_table_says(method: Method) -> None:
    """Writing every default into a file changes nothing."""
    written = "".join(
        f"{spec.name} {spec.defaults[method]};"
        for spec in SETTINGS.values()
        if spec.name != "method" and spec.defaults.get(method, NONE) != NONE
    )
    assert config(f"method {method};") == config(f"method {method};" + written)


def test_defaults_of_moco() -> None:
    c = config("")
    assert (c.method, c.batch, c.image, c.images) == ("moco", 4096, 224, IMAGENET_IMAGES)
    assert c.lr == LearningRate(1.5e-4, 256)
    assert c.lr.peak(4096) == pytest.approx(2.4e-3)
    assert c.decay == Decay("cosine", 1.0, 0.0)
    assert c.warmup == Duration(40, "epochs")  # type: ignore[arg-type]
    assert (c.betas, c.weight_decay) == ((0.9, 0.999), Ramp(0.1, 0.1))
    assert (c.momentum, c.temperature, c.head) == (Ramp(0.99, 1.0), 0.2, (4096, 256))
    assert (c.position, c.freeze_patch, c.clip, c.drop_path) == ("sincos", True, None, 0.0)
    assert (c.augmentation.blur, c.augmentation.solarize) == ((1.0, 0.1, 0.0), (0.0, 0.2, 0.0))
    assert (c.locals, c.teacher_temperature) == (None, None)
    assert c.model.num_heads == 6


def test_defaults_of_simclr() -> None:
    c = config("method simclr;")
    assert c.lr.peak(4096) == pytest.approx(3.2e-3)
    assert c.decay == Decay("cosine", 1.0, 1e-5)
    assert (c.momentum, c.temperature, c.betas) == (None, 0.1, (0.9, 0.98))
    assert c.augmentation.blur == (0.5, 0.5, 0.0)
    assert c.augmentation.jitter.saturation == 0.4


def test_defaults_of_dino() -> None:
    c = config("method dino;")
    assert (c.batch, c.locals, c.head) == (1024, Locals(8, 96), (2048, 256, 65536))
    assert (c.weight_decay, c.momentum) == (Ramp(0.04, 0.4), Ramp(0.996, 1.0))
    assert c.teacher_temperature == TeacherTemperature(0.04, 0.04, 0.0)
    assert (c.clip, c.drop_path, c.freeze_last_layer, c.norm_last_layer) == (3.0, 0.1, 1.0, True)
    assert (c.augmentation.crop, c.augmentation.local_crop) == ((0.4, 1.0), (0.05, 0.4))
    assert c.augmentation.resize == "bicubic"
    assert not c.head_norm


def test_values_of_every_form() -> None:
    c = config(
        "method dino; lr 0.001; decay poly 2 to 1e-6; warmup 5%; clip none; locals 0 96;"
        "teacher_temperature 0.04 -> 0.07 in 30 epochs; weight_decay 0.05; decode 192;"
        'data "a b/*.beton"; norm_last_layer off; head_norm on; drop_path 0; precision float32;'
    )
    assert c.lr.peak(4096) == 0.001
    assert c.decay == Decay("poly", 2.0, 1e-6)
    assert c.warmup.unit == "percent"
    assert (c.clip, c.locals, c.decode, c.data) == (None, None, 192, "a b/*.beton")
    assert c.teacher_temperature == TeacherTemperature(0.04, 0.07, 30.0)
    assert c.weight_decay == Ramp(0.05, 0.05)
    assert not c.norm_last_layer
    assert c.head_norm
    assert len(compile_text("method dino; locals 0 96;" + PHASE).plan.segments[0].views) == 1


def test_how_often_a_run_is_judged_and_on_what() -> None:
    assert (config("").knn, config("").val) == (Duration(10, "percent"), None)  # type: ignore[arg-type]
    assert config("knn none;").knn is None
    c = config('knn 1.5 epochs; val "val.beton";')
    assert (c.knn, c.val) == (Duration(Fraction(3, 2), "epochs"), "val.beton")


def test_where_the_number_of_images_is_from() -> None:
    assert (config("").images, config("").images_source) == (1_281_167, "imagenet-1k")
    c = config("images 50000;")
    assert (c.images, c.images_source) == (50_000, "setting")
    c = config("data digits; batch 250;")
    assert (c.images, c.images_source) == (1000, "data")
    c = config("data digits; batch 250;", images=(5000, "option"))
    assert (c.images, c.images_source) == (5000, "option")
    c = config("data digits; batch 250; images 700;", data="train.beton")
    assert (c.data, c.images, c.images_source) == ("train.beton", 700, "setting")


def test_a_beton_says_how_many_images_it_holds(tmp_path: Path) -> None:
    beton = tmp_path / "x.beton"
    beton.write_bytes(struct.pack("<HHIQQ", 2, 2, 1 << 23, 4321, 999) + bytes(100))
    c = config("batch 100; images 700;", data=str(beton))
    assert (c.images, c.images_source) == (4321, "data")
    for content in (b"", b"short", b"\x89PNG" * 20, struct.pack("<HHIQQ", 2, 2, 1, 0, 0)):
        beton.write_bytes(content)
        assert config("batch 100; images 700;", data=str(beton)).images_source == "setting"
    assert config("batch 100; images 700;", data=str(tmp_path)).images_source == "setting"
    assert config("batch 100; images 700;", data="\0").images_source == "setting"


def test_overrides_replace_statements() -> None:
    c = config("batch big; lr 1;", overrides=("batch=512", "lr = 5e-4 per 256", 'data="x.beton"'))
    assert (c.batch, c.lr, c.data) == (512, LearningRate(5e-4, 256), "x.beton")
    assert config("", overrides=("method=dino",)).batch == 1024
    assert config("batch 512;", overrides=("batch=512",)).batch == 512


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bacth=5", "`bacth` is not a setting"),
        ("batch", "`batch` lacks a whole number"),
        ("batch=512; lr 1", "one statement at a time"),
        ("batch=0", "`batch` cannot be 0"),
        ("knn=0 steps", "`knn` cannot be every 0"),
        ("knn=often", "`often` stands where a number or `none` belongs"),
        ('val="val.beton', "is not closed"),
        ("val=", "`val` lacks a path"),
        ("drop=0.5", "`drop` is not a setting"),
        ("locals=8 96", "`locals` has no effect with method moco"),
        ("choices=drop 0 0.5 patch 16 32", "`choices` has no effect: no phase is `auto`"),
        ("epochs 0-50=full", "is not a setting"),
    ],
)
def test_faults_of_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config("", overrides=(override,))
    assert message in caught.value.message
    assert "--set" in caught.value.message


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('"my photos/"', "my photos/"),
        ("my photos/", "my photos/"),
        (" photos.beton;", "photos.beton"),
        ("../a-*.beton", "../a-*.beton"),
        ("photos", "photos"),
        ("digits/train", "digits/train"),
        ("a;b#c", "a;b#c"),
        ("digits", "digits"),
        ("digits;", "digits"),
    ],
)
def test_a_path_of_the_command_line_needs_no_quotes(text: str, path: str) -> None:
    c = config("batch 100;", overrides=(f"data={text}", f"val = {text}"))
    assert (c.data, c.val) == (path, path)


@pytest.mark.parametrize("text", ["drop=0.5", "patch=32", "full=", "auto", "epochs=10", "steps=9"])
def test_a_phases_word_is_no_mistyped_setting(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config("", overrides=(text,))
    help = caught.value.help
    assert "phase" in help and "edit the file" in help and "did you mean" not in help


def test_a_mistyped_setting_is_answered_as_in_a_file() -> None:
    for name, meant in (("bacth", "batch"), ("batch_size", "batch"), ("learning_rate", "lr")):
        with pytest.raises(ConfigError) as caught:
            config("", overrides=(f"{name}=5",))
        assert caught.value.help == f"did you mean `{meant}`?"


def test_faults_of_a_file_and_an_override_are_shown_together() -> None:
    with pytest.raises(ScheduleError) as caught:
        config("lr x;", overrides=("batch=0",))
    assert caught.value.details.index("--set batch:1:7") < caught.value.details.index("<text>:1:4")
    assert caught.value.message == "<text> has 2 errors"


def test_markdown_has_a_row_for_every_setting() -> None:
    rows = settings_markdown().splitlines()
    assert len(rows) == len(SETTINGS) + 2
    assert all(row.count(" | ") == 5 for row in rows)
    for name, row in zip(SETTINGS, rows[2:], strict=True):
        assert row.startswith(f"| `{name}` | ")


def test_configuration_is_json() -> None:
    value = json.loads(json.dumps(load("dino_opt").config.to_json()))
    assert value["warmup"] == {"value": "10", "unit": "epochs"}
    assert value["model"]["name"] == "vit_small_patch16_224"
