"""Operations a second and memory in the metrics."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from fastcl_cli.schedule import compile_text
from fastcl_cli.train.device import Device
from fastcl_cli.train.usage import Usage


class Named(Device):
    """A processor that says it is another device."""

    @property
    def hardware(self) -> str:
        return "NVIDIA H200 SXM"


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_operations_a_second_by_hand(precision: Literal["bf16", "float32"]) -> None:
    """A SimCLR step of one block: two views, forward and backward (three times forward)."""
    text = """
    method simclr; images 64; batch 8; image 32; head 16 8; warmup 0%;
    model vit_tiny_patch16_224 (embed_dim=24, depth=1, num_heads=2, patch_size=8);
    epochs 0-1: full;
    """
    loaded = compile_text(text)
    (segment,) = loaded.plan.segments
    device = Named(torch.device("cpu"), precision, 1)
    fields = Usage(loaded.config, device).fields(segment, 1000.0)
    width, tokens, total = 24, 16, 17
    block = total * 12 * width**2 + 2 * total**2 * width
    embedding = tokens * 3 * 8**2 * width
    head = width * 16 + 16 * 16 + 16 * 8
    loss = 2 * 8 * 8  # every view of an image with both views of 8 images
    macs = 2 * (block + embedding + head) + loss
    assert fields["tflops"] == pytest.approx(3 * 2 * macs * 1000 / 1e12, rel=0.05)
    if precision == "bf16":
        assert fields["mfu"] == pytest.approx(fields["tflops"] / 989)
    else:
        assert fields["mfu"] is None
    assert fields["memory"] is None or fields["memory"] > 50e6
