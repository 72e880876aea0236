"""Files that were damaged or made to do harm: each must be refused in words, or mean what it meant.

What is accepted is compared with the file before: weights, pixels and labels that changed unnoticed
are what must not happen. benchmarks/hostile.py is the long form.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from profiles import measured, profile
from tiny import moco, spec
from torch import Tensor

from fastcl_cli.checkpoint import (
    RunHeader,
    check_whole,
    load_backbone,
    read_run_header,
    save_backbone,
    save_run,
)
from fastcl_cli.data.beton import open_beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.pack import pack
from fastcl_cli.data.sidecar import sidecar_path
from fastcl_cli.errors import FastclError
from fastcl_cli.estimate.profile_file import read_profile, write_profile
from fastcl_cli.evaluate.sets import data_of_run
from fastcl_cli.schedule import compile_text
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.train.folder import RunFolder
from fastcl_cli.train.optim import build_optimizer

TOO_LONG_S = 10.0
"""Of this processor's time, for one small file."""
DEEP = b"[" * 100_000
ODD = ("0", "-1", "1e999", "NaN", "null", "true", '""', "[]", "{}", "9" * 400, '"../../x"', "[[1]]")


def mutate(data: bytes, draw: random.Random, hot: int = 0) -> bytes:
    """``data`` with a few bits, bytes or stretches changed, half of the time within the first
    ``hot`` bytes, or cut or grown."""
    end = hot if hot and draw.random() < 0.5 else len(data)
    changed = bytearray(data)
    kind = draw.randrange(7)
    start = draw.randrange(end)
    if kind == 0:
        changed[start] ^= 1 << draw.randrange(8)
    elif kind == 1:
        for _ in range(draw.randrange(1, 9)):
            changed[draw.randrange(end)] = draw.randrange(256)
    elif kind == 2:
        stretch = draw.randrange(1, 400)
        changed[start : start + stretch] = bytes(len(changed[start : start + stretch]))
    elif kind == 3:
        del changed[start : start + draw.randrange(1, 400)]
    elif kind == 4:
        changed[start:start] = draw.randbytes(draw.randrange(1, 400))
    elif kind == 5:
        del changed[start:]
    else:
        value = draw.choice([0, 1, 2**15, 2**31 - 1, 2**32, 2**60, 2**63, 2**64 - 1])
        at = start & ~7
        changed[at : at + 8] = struct.pack("<Q", value)[: len(changed) - at]
    return bytes(changed)


def mutate_json(text: str, draw: random.Random) -> bytes:
    """A JSON text with a value replaced by an odd one, or mutated as bytes."""
    if draw.random() < 0.3:
        return mutate(text.encode(), draw)
    if draw.random() < 0.02:
        return DEEP
    value = json.loads(text)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return text.encode()
        key = draw.choice(keys)
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
            place = inner
            continue
        if draw.random() < 0.2 and isinstance(place, dict):
            del place[key]
            return json.dumps(value).encode()
        place[key] = "@@"
        return json.dumps(value).replace('"@@"', draw.choice(ODD)).encode()


@dataclass(frozen=True)
class Good:
    """Files that are as they should be: a checkpoint of a run and its backbone, a beton, a run's
    ``config.json`` and metrics lines, and a profile."""

    checkpoint: Path
    backbone: Path
    beton: Path
    config: str
    lines: tuple[str, ...]
    profile: Path


def make_good(folder: Path) -> Good:
    method = moco()
    header = RunHeader(7, "abc", {"batch": 8}, "images", "epochs 0-1: full;", {}, {}, {})
    checkpoint, backbone = folder / "good.safetensors", folder / "backbone.safetensors"
    save_run(checkpoint, method, build_optimizer(method, (0.9, 0.999)), spec(), header)
    save_backbone(backbone, method.backbone, spec(), 7)
    pack("digits", folder / "good.beton", split="val")
    loaded = compile_text("epochs 0-60: drop 0.5 patch 32; epochs 60-90: full;")
    views = full_views(loaded.config)
    write_profile(
        folder / "profile.json", profile(loaded.config, [measured(loaded.config, views, 64, 9.0)])
    )
    config = {"schema_version": 1, "config": loaded.config.to_json() | {"data": "x.beton"}}
    line = {"step": 0, "loss": 0.5, "online": {"drop": 0.5}, "grad_error": None}
    lines = tuple(json.dumps(line | {"step": step}) for step in range(20))
    return Good(
        checkpoint, backbone, folder / "good.beton", json.dumps(config), lines,
        folder / "profile.json",
    )  # fmt: skip


class Tally(Counter[str]):
    """How often files were refused, how often accepted as what they were."""

    def judge(self, path: Path, data: bytes, same: Callable[[], bool]) -> None:
        """``same`` opens the file and says whether it still means the same."""
        path.write_bytes(data)
        began = time.process_time()
        try:
            accepted = same()
        except FastclError as error:
            assert error.message and len(error.message) < 2000, error.message[:3000]
            self["refused"] += 1
            return
        finally:
            assert time.process_time() - began < TOO_LONG_S, f"{path} takes long"
        assert accepted, f"{path}: accepted, and is not what it was"
        self["accepted"] += 1


def checkpoints(folder: Path, good: Good, count: int, seed: int) -> Tally:
    """Mutated run checkpoints and backbones."""
    draw, tally = random.Random(seed), Tally()
    for number in range(count):
        source = (good.checkpoint, good.backbone)[number % 2]
        data, path = source.read_bytes(), folder / "bad.safetensors"
        header_end = 8 + struct.unpack("<Q", data[:8])[0]
        expected = _weights(source)
        header = read_run_header(source) if source == good.checkpoint else None

        def same(
            path: Path = path, expected: dict[str, Tensor] = expected, header: Any = header
        ) -> bool:
            check_whole(path)
            if header is not None and read_run_header(path) != header:
                return False
            found = _weights(path)
            return found.keys() == expected.keys() and all(
                torch.equal(found[k], v) for k, v in expected.items()
            )

        tally.judge(path, mutate(data, draw, header_end), same)
    return tally


def _weights(path: Path) -> dict[str, Tensor]:
    return dict(load_backbone(path)[0].vit.state_dict())


def betons(folder: Path, good: Good, count: int, seed: int) -> Tally:
    """Mutated betons, decoded to the last image through one loader's compiled code."""
    draw, tally = random.Random(seed), Tally()
    data, path = good.beton.read_bytes(), folder / "bad.beton"
    beton = open_beton(good.beton)
    loader = DecodedLoader(beton, 32, 1)
    expected = _decode(loader)
    tables = len(data) - 24 * beton.images - 32 - 8 * beton.images

    def same() -> bool:
        found = open_beton(path)
        loader._files.open(found)
        loader.beton = found
        return (
            found.images == beton.images
            and np.array_equal(_decode(loader), expected)
            and all(
                np.array_equal(getattr(found, name), getattr(beton, name))
                for name in ("heights", "widths", "labels")
            )
        )

    for number in range(count):
        if number % 4 == 3:  # the checksums, their seal and the allocation table
            bad = data[:tables] + mutate(data[tables:], draw)
        else:
            bad = mutate(data, draw, 4096)
        path.unlink(missing_ok=True)  # the file before stays mapped as it was
        tally.judge(path, bad, same)
    return tally


def _decode(loader: DecodedLoader) -> np.ndarray:
    with loader.stream(np.arange(loader.beton.images), 64) as batches:
        return np.concatenate([batch.images.numpy().copy() for batch in batches])


def run_files(folder: Path, good: Good, count: int, seed: int) -> Tally:
    """Mutated JSON: a run's ``config.json`` and metrics lines, a profile, a sidecar."""
    draw, tally = random.Random(seed), Tally()
    stored, sidecar = good.profile.read_text(), sidecar_path(good.beton).read_text()
    expected = open_beton(good.beton)
    linked = folder / "linked.beton"
    linked.symlink_to(good.beton)
    bad = RunFolder(folder / "run")
    bad.path.mkdir()

    def truncates() -> bool:
        bad.rewind(10)
        kept = bad.metrics.read_text().splitlines()
        return all(json.loads(line)["step"] <= 10 for line in kept)

    def names_data() -> bool:
        return all(found is None or isinstance(found, str) for found in data_of_run(bad.backbone))

    def reads() -> bool:
        read_profile(folder / "bad.json")
        return True

    def names_classes() -> bool:
        found = open_beton(linked)
        return (found.identity, found.classes) == (expected.identity, expected.classes)

    for number in range(count):
        if number % 4 == 0:
            tally.judge(bad.config, mutate_json(good.config, draw), names_data)
        elif number % 4 == 1:
            tally.judge(folder / "bad.json", mutate_json(stored, draw), reads)
        elif number % 4 == 2:
            tally.judge(sidecar_path(linked), mutate_json(sidecar, draw), names_classes)
        else:
            texts = [line.encode() for line in good.lines]
            row = draw.randrange(len(texts))
            texts[row] = mutate_json(good.lines[row], draw).replace(b"\n", b" ")
            tally.judge(bad.metrics, b"\n".join(texts) + b"\n", truncates)
    return tally
