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
    use_short_attention,
    use_timm_attention,
)

CASES = [
    (3, 5, 2, 16),
    (7, 26, 3, 32),
    (2, 64, 1, 64),
    (5, 17, 2, 16),
    (9, 1, 1, 16),
    (1, 33, 1, 32),
]
INTERPRETED = f"""
import json
import torch
from timm.layers.attention import Attention
from fastcl_cli.model import short_attention as module

def difference(actual, expected):
    return float((actual - expected).norm() / expected.norm())

found = []
for images, tokens, heads, width in {CASES}:
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(images, tokens, 3, heads, width, generator=generator)
    upstream = torch.randn(images, tokens, heads, width, generator=generator)
    exact = qkv.double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) * 0.3).exp()
    expected = (weights / weights.sum(dim=3, keepdim=True) @ v).transpose(1, 2)
    gradient, = torch.autograd.grad(expected, exact, upstream.double())
    qkv.requires_grad_()
    actual = module.short_attention(qkv, 0.3)
    own, = torch.autograd.grad(actual, qkv, upstream)
    found.append([difference(actual, expected), difference(own, gradient)])

layer = Attention(32, num_heads=2, qkv_bias=True)
x = torch.randn(4, 10, 32)
expected = layer(x)
layer.__class__ = module.ShortAttention
taken = []
module._fits = lambda qkv: taken.append(qkv.shape) or True
found.append([difference(layer(x), expected), 2 - len(taken) - (taken == [(4, 10, 3, 2, 16)])])
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_the_kernels_compute_attention_and_its_gradient() -> None:
    """Of every number of images to a tile, and with tiles that are not full; and timm's layer."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(CASES) + 1
    assert max(max(pair) for pair in found) < 2e-6, found


def block(**options: object) -> Block:
    torch.manual_seed(0)
    return Block(32, num_heads=2, qkv_bias=True, **options)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_a_plain_layer_is_taken_over_and_given_back() -> None:
    own, x = block(), torch.randn(3, 100, 32)
    expected, names = own(x), list(own.state_dict())
    use_short_attention(own)
    assert type(own.attn) is ShortAttention and list(own.state_dict()) == names
    assert torch.allclose(own(x), expected, atol=1e-6)  # too many tokens, and on the CPU
    use_timm_attention(own)
    assert type(own.attn) is Attention
    assert torch.equal(own(x), expected)


@pytest.mark.parametrize(
    "options",
    [{"qk_norm": True}, {"attn_drop": 0.1}, {"proj_drop": 0.1}, {"scale_attn_norm": True}],
)
def test_a_layer_with_more_to_it_stays_timms(options: dict[str, object]) -> None:
    own = block(**options)
    use_short_attention(own)
    assert type(own.attn) is Attention


def test_other_blocks_are_left_alone() -> None:
    other = nn.Linear(2, 2)
    use_short_attention(other)
    use_timm_attention(other)
    assert type(other) is nn.Linear
