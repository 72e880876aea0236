"""Attention among few tokens: its kernels, interpreted on the CPU in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn

from fastcl_cli.model.short_attention import (
    ShortAttention,
    tiles_of,
    use_short_attention,
    use_timm_attention,
)

CASES = [
    ([(3, 5)], 2, 16), ([(7, 26)], 3, 32), ([(2, 64)], 1, 64), ([(9, 1)], 1, 16),
    ([(1, 33)], 1, 32), ([(5, 26), (11, 6), (2, 17)], 2, 16),
]  # fmt: skip
"""Images and tokens of each in a row, heads, and their width."""
INTERPRETED = f"""
import json
import torch
from fastcl_cli.model.short_attention import short_attention, tiles_of

def difference(actual, expected):
    return float((actual - expected).norm() / expected.norm())

def attention(qkv, shapes):
    done, start = [], 0
    for images, tokens in shapes:
        for first in range(start, start + images * tokens, tokens):
            q, k, v = qkv[first : first + tokens].permute(1, 2, 0, 3)
            weights = (q @ k.transpose(1, 2) * 0.3).exp()
            done.append((weights / weights.sum(dim=2, keepdim=True) @ v).transpose(0, 1))
        start += images * tokens
    return torch.cat(done)

found = []
for shapes, heads, width in {CASES}:
    rows = sum(images * tokens for images, tokens in shapes)
    generator = torch.Generator().manual_seed(rows)
    qkv = torch.randn(rows, 3, heads, width, generator=generator)
    upstream = torch.randn(rows, heads, width, generator=generator)
    exact = qkv.double().requires_grad_()
    expected = attention(exact, shapes)
    gradient, = torch.autograd.grad(expected, exact, upstream.double())
    qkv.requires_grad_()
    actual = short_attention(qkv, tiles_of(tuple(shapes), qkv.device), 0.3)
    own, = torch.autograd.grad(actual, qkv, upstream)
    found.append([difference(actual, expected), difference(own, gradient)])
print(json.dumps(found))
"""
PACKED = """
import copy
import json
import torch
from fastcl_cli.methods.build import build_method
from fastcl_cli.model.compiled import compile_blocks
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.model.vit import Encoder
from fastcl_cli.schedule import load
from torch._dynamo.utils import counters

torch.manual_seed(0)
plain = build_method(load("quickstart_dino").config, 0).online["backbone"]
own = copy.deepcopy(plain)
rows = [((4, 13), (6, 6)), ((5, 17), (7, 3))]
Encoder.in_one_row = lambda self, tokens: self.packs
compile_blocks(own, None, rows, [], dropped_paths=True, backend="aot_eager")
own.packs = True
found = []
for shapes in rows:
    groups = []
    for images, tokens in shapes:
        generator = torch.Generator().manual_seed(tokens)
        view = torch.randn(images, 3, 32, 32, generator=generator)
        kept = torch.rand(images, 64, generator=generator).argsort(dim=1)[:, : tokens - 1]
        groups.append((view, kept, draw_paths(images, plain.depth, 0.3, generator)))
    results = []
    for encoder in (plain, own):
        encoder.zero_grad()
        features = encoder.encode(groups)
        sum((x * torch.arange(x.shape[1]).cos()).sum() for x in features).backward()
        gradients = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        results.append([*features, torch.cat(gradients)])
    found += [float((a - b).norm() / a.norm()) for a, b in zip(*results)]
print(json.dumps(found))
"""


def interpreted(program: str) -> list[object]:
    """What a program prints where Triton's kernels are run on the CPU."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_the_kernels_compute_attention_and_its_gradient() -> None:
    """Of one shape and of several, with any number of images to a tile, and tiles not full."""
    found = interpreted(INTERPRETED)
    assert len(found) == len(CASES)
    assert max(max(pair) for pair in found) < 2e-6, found


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_views_of_several_shapes_in_one_row_give_what_each_gives_alone() -> None:
    """Features and all gradients, with skipped paths, compiled."""
    found = interpreted(PACKED)
    assert len(found) == 6 and max(found) < 1e-5, found


def test_tiles_hold_whole_images() -> None:
    tiles = tiles_of(((5, 26), (11, 6)), torch.device("cpu")).tolist()
    assert tiles == [[0, 52, 26], [52, 52, 26], [104, 26, 26], [130, 60, 6], [190, 6, 6]]


def block(**options: object) -> Block:
    torch.manual_seed(0)
    return Block(32, num_heads=2, qkv_bias=True, **options)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_a_plain_layer_is_taken_over_and_given_back() -> None:
    own, x = block(), torch.randn(3, 100, 32)
    expected, names = own(x), list(own.state_dict())
    assert use_short_attention(own)
    assert use_short_attention(own)  # once more changes nothing
    assert type(own.attn) is ShortAttention and list(own.state_dict()) == names
    assert torch.allclose(own(x), expected, atol=1e-6)
    use_timm_attention(own)
    assert type(own.attn) is Attention
    assert torch.equal(own(x), expected)


@pytest.mark.parametrize(
    "options",
    [{"qk_norm": True}, {"attn_drop": 0.1}, {"proj_drop": 0.1}, {"scale_attn_norm": True}],
)
def test_a_layer_with_more_to_it_stays_timms(options: dict[str, object]) -> None:
    own = block(**options)
    assert not use_short_attention(own)
    assert type(own.attn) is Attention


def test_other_blocks_are_left_alone() -> None:
    other = nn.Linear(2, 2)
    assert not use_short_attention(other)
    use_timm_attention(other)
    assert type(other) is nn.Linear
