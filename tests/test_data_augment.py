"""The random numbers of views and of the order: distributions, and what they depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastcl_cli.config import Augmentation, Jitter
from fastcl_cli.data.augment import ASPECT, SIGMA, TRIES, crop_boxes, draw_views
from fastcl_cli.data.order import epoch_order

RECIPE = Augmentation(
    crop=(0.2, 0.5),
    local_crop=(0.05, 0.2),
    resize="bilinear",
    flip=0.5,
    jitter=Jitter(0.4, 0.3, 0.2, 0.1, 0.8),
    grayscale=0.2,
    blur=(1.0, 0.1, 0.5),
    solarize=(0.0, 0.2, 0.0),
)


def draw(count: int, seed: int = 0, view: str = "first", height: int = 100, width: int = 100):
    generator = torch.Generator().manual_seed(seed)
    return draw_views(RECIPE, view, np.full(count, height), np.full(count, width), generator)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_a_seed_gives_its_draws_and_no_other() -> None:
    assert same(draw(64), draw(64))
    assert not same(draw(64), draw(64, seed=1))


def test_rows_are_the_ranks_share_of_the_batch() -> None:
    whole = draw(24)
    parts = [whole.rows(slice(start, start + 6)) for start in range(0, 24, 6)]
    for name, values in vars(whole).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), values)
    picked = whole.rows(torch.tensor([3, 1]))
    assert torch.equal(picked.boxes, whole.boxes[[3, 1]]) and len(picked) == 2


@pytest.mark.parametrize("view", ["first", "second", "local"])
def test_the_generator_moves_by_the_same_amount_whatever_comes_out(view: str) -> None:
    states = []
    for height, width in ((100, 100), (10, 1000), (1000, 10)):
        generator = torch.Generator().manual_seed(0)
        draw_views(RECIPE, view, np.full(16, height), np.full(16, width), generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_area_and_aspect_of_boxes_follow_their_law() -> None:
    """On squares, with areas up to 1/2, the first try always fits: uniform and log-uniform."""
    boxes = draw(20000).boxes.numpy()
    area = boxes[:, 2] * boxes[:, 3]
    assert stats.kstest(area, stats.uniform(0.2, 0.3).cdf).pvalue > 1e-3
    aspect = np.log(boxes[:, 3] / boxes[:, 2])
    low, high = np.log(ASPECT)
    assert stats.kstest(aspect, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    for axis in (0, 1):
        place = boxes[:, axis] / (1 - boxes[:, 2 + axis])
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 1e-3


def test_aspect_is_that_of_the_true_image() -> None:
    """On a 2:1 image a box's shares are squeezed, its pixels are not."""
    boxes = draw(20000, view="local", height=100, width=200).boxes.numpy()
    pixels = boxes[:, 2] * 100, boxes[:, 3] * 200
    area = pixels[0] * pixels[1] / 20000
    assert stats.kstest(area, stats.uniform(0.05, 0.15).cdf).pvalue > 1e-3
    assert (pixels[1] / pixels[0]).min() >= ASPECT[0] - 1e-9
    assert (pixels[1] / pixels[0]).max() <= ASPECT[1] + 1e-9


def test_rejected_tries_leave_the_conditional_law() -> None:
    """Where tries can fail, an accepted box has the law of a try given that it fits.

    Reference: a slow loop over numpy draws, compared by a two-sample Kolmogorov-Smirnov test.
    """
    recipe = Augmentation(**{**{f: getattr(RECIPE, f) for f in RECIPE.__slots__}, "crop": (0.5, 1)})
    generator = torch.Generator().manual_seed(3)
    boxes = draw_views(recipe, "first", np.full(8000, 300), np.full(8000, 400), generator).boxes
    random = np.random.default_rng(3)
    heights = []
    while len(heights) < 8000:
        area = random.uniform(0.5, 1) * 300 * 400
        aspect = math.exp(random.uniform(*np.log(ASPECT)))
        height, width = math.sqrt(area / aspect), math.sqrt(area * aspect)
        if height <= 300 and width <= 400:
            heights.append(height / 300)
    whole = (boxes[:, 2:] == 1).all(1)
    assert whole.float().mean() < 0.01
    assert stats.ks_2samp(boxes[~whole, 2].numpy(), heights).pvalue > 1e-3


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (100, 1000, (0.0, (1 - 400 / 3 / 1000) / 2, 1.0, 400 / 3 / 1000)),
        (1000, 100, ((1 - 400 / 3 / 1000) / 2, 0.0, 400 / 3 / 1000, 1.0)),
        (100, 100, (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_ten_failures_fall_back_to_the_centre(height: int, width: int, expected) -> None:
    shape = torch.tensor([float(height)]).double(), torch.tensor([float(width)]).double()
    # Ten tries at the whole area, tall on wide images and wide on tall ones: none fits.
    aspect = torch.full((1, TRIES), 0.0 if width >= height else 0.999).double()
    area = torch.full((1, TRIES), 1.0).double()
    boxes = crop_boxes(*shape, (0.9, 1.0), area, aspect, torch.full((1, 2), 0.9).double())
    assert torch.allclose(boxes[0], torch.tensor(expected).double(), atol=1e-12)


def test_the_first_try_that_fits_counts() -> None:
    one = torch.ones(1, dtype=torch.float64)
    area = torch.full((1, TRIES), 1.0).double()
    area[0, 3], area[0, 4] = 0.25, 0.1
    aspect = torch.zeros(1, TRIES).double()
    boxes = crop_boxes(one, one, (0.0, 1.0), area, aspect, torch.zeros(1, 2).double())
    assert torch.allclose(boxes[0, 2] * boxes[0, 3], torch.tensor(0.25).double())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60000),
    st.integers(1, 60000),
    st.floats(0.01, 1.0),
    st.integers(0, 2**31),
)
def test_boxes_lie_inside(height: int, width: int, least: float, seed: int) -> None:
    recipe = Augmentation(
        **{**{f: getattr(RECIPE, f) for f in RECIPE.__slots__}, "crop": (least, 1.0)}
    )
    generator = torch.Generator().manual_seed(seed)
    boxes = draw_views(recipe, "first", np.full(50, height), np.full(50, width), generator).boxes
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-12).all()


def within(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 1e-12) / count)


@pytest.mark.parametrize("view, which", [("first", 0), ("second", 1), ("local", 2)])
def test_probabilities_are_the_views_own(view: str, which: int) -> None:
    count = 20000
    drawn = draw(count, seed=7, view=view)
    assert within(drawn.flip.double().mean().item(), 0.5, count)
    assert within(drawn.jitter.double().mean().item(), 0.8, count)
    assert within(drawn.grayscale.double().mean().item(), 0.2, count)
    assert within((drawn.blur > 0).double().mean().item(), RECIPE.blur[which], count)
    assert within(drawn.solarize.double().mean().item(), RECIPE.solarize[which], count)
    area = drawn.boxes[:, 2] * drawn.boxes[:, 3]
    low, high = RECIPE.local_crop if view == "local" else RECIPE.crop
    assert low <= area.min() and area.max() <= high


def test_factors_and_order_are_uniform() -> None:
    count = 20000
    drawn = draw(count)
    bounds = [(0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)]
    for values, (low, high) in zip(drawn.factors.T.numpy(), bounds, strict=True):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    sigma = drawn.blur.numpy()
    assert stats.kstest(sigma, stats.uniform(SIGMA[0], SIGMA[1] - SIGMA[0]).cdf).pvalue > 1e-3
    code = (drawn.order * torch.tensor([64, 16, 4, 1])).sum(1)
    kinds, counts = code.unique(return_counts=True)
    assert len(kinds) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    first = epoch_order(1000, 0, 0)
    assert first.dtype == np.int64 and sorted(first) == list(range(1000))
    assert np.array_equal(first, epoch_order(1000, 0, 0))
    keys = [(seed, epoch) for seed in (0, 1, 2, 2**32, 2**32 + 1) for epoch in (0, 1, 2)]
    orders = {epoch_order(1000, *key).tobytes() for key in keys}
    assert len(orders) == len(keys)


def test_order_is_uniform() -> None:
    """Each image is equally often at each place: a chi-square over 3,000 epochs of 6 images."""
    places = np.stack([epoch_order(6, 5, epoch) for epoch in range(3000)])
    for place in range(6):
        assert stats.chisquare(np.bincount(places[:, place], minlength=6)).pvalue > 1e-4
