"""Attention on this CPU: torch's fused kernel beside three batched products, forward and backward.

One thread, the heads of ViT-S (6 of width 64), inputs as a block has them. `model/vit.py` chooses
by what this says.

    python benchmarks/attention.py [--images 64] [--tokens 197 50 26] [--repetitions 9] [--record]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import interleaved, record, table
from torch import Tensor

from fastcl_cli.train.device import choose_device

HEADS, WIDTH = 6, 64
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As a timm block has it where it is told not to fuse."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores.softmax(-1) @ value


def both_ways(
    attention: Attention, images: int, tokens: int, dtype: torch.dtype
) -> Callable[..., None]:
    """Forward and backward of some attention."""
    three = torch.randn(images, tokens, 3, HEADS, WIDTH, dtype=dtype).permute(2, 0, 3, 1, 4)
    inputs = [part.requires_grad_() for part in three.unbind(0)]
    gradient = torch.randn(images, tokens, HEADS, WIDTH, dtype=dtype).transpose(1, 2)
    return lambda: torch.autograd.backward(attention(*inputs), gradient, inputs=inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 50, 26])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ways: dict[str, Attention] = {"fused": F.scaled_dot_product_attention, "products": products}
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in options.tokens:
            work = {
                name: both_ways(way, options.images, tokens, dtype) for name, way in ways.items()
            }
            times = interleaved(work, options.repetitions)
            cells = [f"{1000 * seconds:.1f}" for seconds in times.values()]
            ratio = times["fused"] / times["products"]
            rows.append([str(dtype).removeprefix("torch."), str(tokens), *cells, f"{ratio:.2f}"])
    body = table(["dtype", "tokens", *(f"{name}, ms" for name in ways), "fused / products"], rows)
    if options.record:
        title = "Attention on a CPU, forward and backward, 6 heads of 64"
        record(title, body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
