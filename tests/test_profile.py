"""Profiles: what they say of a schedule, and that nothing else than a profile is read as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from profiles import measured, profile

from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.estimate.profile import Profile, Spread, is_full
from fastcl_cli.estimate.profile_file import (
    MAX_BYTES,
    default_path,
    from_json,
    profile_folder,
    read_profile,
    stored_profiles,
    to_json,
    write_profile,
)
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.resolve import full_views

TEXT = "method dino; batch 256; warmup 0%; epochs 0-6: drop 0.5 patch 32; epochs 6-10: full;"


def loaded(text: str = TEXT) -> Loaded:
    return compile_text(text, "test.fcs")


def example(text: str = TEXT) -> Profile:
    item = loaded(text)
    config, (cheap, full) = item.config, item.plan.segments
    settings = [
        measured(config, cheap.views, 256, 50.0, 10.0),
        measured(config, full.views, 256, 200.0, 40.0),
        measured(config, full.views, 64, 80.0),
        measured(config, cheap.views, 64, 20.0),
    ]
    return profile(config, settings, ceiling=5000.0)


@pytest.mark.parametrize("name", ["moco_opt", "simclr_opt", "dino_opt"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    item = load(name)
    settings = [
        measured(item.config, s.views, s.batch, 10.0 + i) for i, s in enumerate(item.plan.segments)
    ]
    settings[0] = replace(settings[0], memory=None)
    for ceiling in (None, 1234.5):
        written = profile(item.config, settings, ceiling=ceiling)
        write_profile(tmp_path / "new" / "p.json", written)
        assert read_profile(tmp_path / "new" / "p.json") == written


def test_a_drop_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A tenth stays a tenth on the way through a float."""
    one = example()
    setting = replace(one.measured[0].setting)
    setting = replace(setting, online=replace(setting.online, drop=Fraction(1, 10)))
    written = replace(one, measured=(replace(one.measured[0], setting=setting), *one.measured[1:]))
    assert from_json(json.loads(json.dumps(to_json(written)))) == written


def test_the_file_says_what_follows_from_it() -> None:
    row = to_json(example())["settings"][0]
    assert row["images_per_s"] == pytest.approx(256 / 0.050)
    # Without the wait: 40 ms for 160 ms.
    assert row["sample_cost"] == pytest.approx(40 / 160)


def test_sample_cost_is_of_the_nearest_batch_without_compression() -> None:
    one = example()
    costs = [one.sample_cost(m) for m in one.measured]
    assert costs == pytest.approx([0.25, 1.0, 1.0, 0.25])


def test_the_nearest_batch_answers() -> None:
    one = example()
    views = one.measured[0].setting.views
    batches = {}
    for batch in (1, 64, 127, 129, 256, 4096):
        found = one.find(views, batch)
        assert found is not None
        batches[batch] = found.setting.batch
    # By ratio, the middle between 64 and 256 is 128; there the larger wins.
    assert batches == {1: 64, 64: 64, 127: 64, 129: 256, 256: 256, 4096: 256}
    middle = one.find(views, 128)
    assert middle is not None and middle.setting.batch == 256
    eight = replace(one, processes=4)  # 256 images are then 64 for each
    found = eight.find(views, 64)
    assert found is not None and found.setting.batch == 256
    assert one.find(views[:1], 64) is None


def test_full_is_every_token_of_every_encoder() -> None:
    item = loaded("method moco; epochs 0-1: drop 0.5 on target; epochs 1-2: patch 32 on target;")
    full = full_views(item.config)
    assert is_full(full, 16)
    assert not is_full(full, 8)
    assert not any(is_full(s.views, 16) for s in item.plan.segments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("method moco;", "method is moco, measured dino"),
        ("locals 6 96;", "locals is 6 96, measured 8 96"),
        ("image 448;", "image is 448, measured 224"),
        ("head 2048 256 4096;", "head is 2048 256 4096, measured 2048 256 65536"),
        ("model vit_base_patch16_224;", "embed_dim is 768, measured 384"),
        ("precision float32;", "precision is float32, measured bf16"),
    ],
)
def test_another_workload_is_told_apart(change: str, said: str) -> None:
    text = TEXT.replace("method dino;", "") if "method" in change else TEXT
    other = loaded(change + text)
    assert said in example().differences(other.config)


@pytest.mark.parametrize("same", ["lr 1;", "precision bf16;", "decode 300;", "images 77777;"])
def test_what_takes_no_time_does_not_matter(same: str) -> None:
    assert example().differences(loaded(same + TEXT).config) == []


def test_a_recipe_that_differs_is_remarked_on() -> None:
    one = example()
    assert one.remarks(loaded().config) == []
    other = loaded("clip none; blur 0 0 0; decode 300;" + TEXT).config
    assert one.remarks(other) == [
        "clip is off, measured on",
        "blur is 0 0 0, measured 1 0.1 0.5",
        "decode is 300, measured none",
    ]


def test_quartiles_of_five() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def remove(*keys: str | int) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return apply


def put(new: object, *keys: str | int) -> Callable[[Any], None]:
    def apply(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return apply


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("device"), "device is missing"),
        (put(2, "schema_version"), "schema_version is 2; this fastcl reads 1"),
        (put("fp8", "precision"), "precision is 'fp8', not one of float32, bf16"),
        (put([], "precision"), r"precision is \[\], not one of"),
        (put("a\nb", "device"), "device is 'a.nb', not a line"),
        (put("x" * 301, "data"), "data is 'x+…, not a line"),
        (put(True, "processes"), "processes is True, not a whole number"),
        (put(0, "images"), "images is 0, not a whole number from 1"),
        (put([], "versions"), "versions is not an object"),
        (put([], "settings"), r"settings is \[\], not a list of 1 to"),
        (put([3], "settings"), r"settings\[0\] is not an object"),
        (remove("settings", 0, "wait_ms"), r"settings\[0\].wait_ms is missing"),
        (put(-1, "settings", 0, "wait_ms"), "wait_ms is -1, not a number from 0"),
        (put(50.0, "settings", 0, "wait_ms"), "wait_ms is 50.0, not a number from 0 to 49.9"),
        (put(float("nan"), "settings", 1, "step_ms", "median"), "median is nan, not a number"),
        (put(float("inf"), "settings", 1, "step_ms", "high"), "high is inf, not a number"),
        (put(10**400, "settings", 1, "step_ms", "high"), "high is 10+…, not a number from 200"),
        (put(0, "settings", 1, "step_ms", "median"), "median is 0, not a number above 0"),
        (put(300, "settings", 1, "step_ms", "low"), "low is 300, not a number from 0 to 200"),
        (put(10**30, "settings", 1, "flops"), "flops is 10+, not a whole number"),
        (put("x", "settings", 2, "views", 0, "online", "kept"), r"views\[0\].online.kept is 'x'"),
        (put(197, "settings", 2, "views", 0, "online", "kept"), "kept is 197.*1 to 196"),
        (put("far", "settings", 2, "views", 1, "name"), "name is 'far', not one of global, local"),
        (put({"a": 1}, "settings", 2, "views"), "views is {'a': 1}, not a list"),
        (put("none", "settings", 0, "online"), r"settings\[0\].online is not an object"),
        (put([8], "workload", "locals"), r"locals is \[8\], not a list of 2"),
        (put([8, "y"], "workload", "locals"), r"locals.1 is 'y', not a whole number"),
        (put(1, "recipe", "clip"), "clip is 1, not true or false"),
        (put(1.5, "recipe", "blur", 1), "blur.1 is 1.5, not a number from 0 to 1"),
        (put(-1, "fixed", "start_s"), "start_s is -1, not a number from 0"),
        (put(8, "workload", "patch"), "settings hold none without compression"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_line(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    value = json.loads(json.dumps(to_json(example())))
    change(value)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=said) as caught:
        read_profile(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message and len(caught.value.message) < 400
    assert "fastcl bench" in caught.value.help


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "the file is not an object"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (None, "cannot be read: No such file"),
    ],
)
def test_any_bytes_get_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_profile(path)


def test_stored_profiles_are_found_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path))
    assert stored_profiles() == ([], [])
    old, again = example(), replace(example(), date="2026-05-05T00:00:00+00:00")
    other = replace(again, device="NVIDIA H100 80GB HBM3", date="2026-03-03T00:00:00+00:00")
    assert default_path(old) == default_path(again) != default_path(other)
    assert default_path(old).parent == profile_folder()
    assert default_path(old).name.startswith("nvidia-a100-sxm4-80gb-dino-vit-small-patch16-224-")
    for one in (old, other):
        write_profile(default_path(one), one)
    newer = replace(again, measured=again.measured[1:])
    write_profile(default_path(newer), newer)
    (profile_folder() / "bad.json").write_text("{}")
    found, faults = stored_profiles()
    assert [one for _, one in found] == [newer, other, old]
    assert len(faults) == 1 and "bad.json" in faults[0]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_profile(tmp_path / "file" / "p.json", example())
