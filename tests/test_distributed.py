"""Several processes are one: each comparison is between real processes over gloo and one alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contrastive import BETAS, SETTINGS, ZERO, Setting, View, batch
from safetensors.torch import load_file, save_file
from test_dino import VALUES as DINO_VALUES
from test_dino import dino
from test_moco import VALUES as MOCO_VALUES
from test_run import CLOCK, STEPS, cli, metrics, run, wait_for_step
from test_simclr import VALUES as SIMCLR_VALUES
from test_simclr import simclr
from tiny import IMAGE, exact, moco, spec
from torch import Tensor, nn

from fastcl_cli.checkpoint import RunHeader, load_run, save_run
from fastcl_cli.data.loader import Decoded, DecodedLoader
from fastcl_cli.data.source import open_split
from fastcl_cli.errors import ConfigError, DataError, FastclError
from fastcl_cli.gradient_error.paired import PairedGradients, measure
from fastcl_cli.methods.base import Input, Method
from fastcl_cli.methods.build import build_method
from fastcl_cli.model.norm import GlobalBatchNorm
from fastcl_cli.processes import distributed
from fastcl_cli.processes.joining import processes
from fastcl_cli.processes.launchers import Place
from fastcl_cli.schedule import Request, compile_text
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.shards import whole
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import Batch, InputMaker
from fastcl_cli.train.loop import batches, check_batches
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.sharding import place_method
from fastcl_cli.train.step import Trainer

PROCESSES = 2
Results = dict[str, Tensor]

METHODS: dict[str, tuple[Callable[[], Method], Any, tuple[int, ...], int, float | None]] = {
    "moco": (lambda: exact(moco()), MOCO_VALUES, (IMAGE, IMAGE), 2, None),
    "simclr": (simclr, SIMCLR_VALUES, (IMAGE, IMAGE), 0, None),
    "dino": (lambda: dino(norm_last_layer=False), DINO_VALUES, (IMAGE, IMAGE, 8, 8), 2, 0.05),
    "dino, head_norm": (lambda: dino(head_norm=True), DINO_VALUES, (IMAGE, IMAGE, 8, 8), 2, 0.05),
}
PATHS = Setting(4, 4, True, drop_path=0.5)
PARTS = "in parts"
CASES = {
    **{f"{m}, {s}": (m, SETTINGS[s], torch.float64) for m in METHODS for s in SETTINGS},
    "dino, drop_path": ("dino", PATHS, torch.float64),
    **{f"{m}, {PARTS}": (m, PATHS, torch.float64) for m in METHODS},
    **{f"{m}, float32": (m, SETTINGS["drop+patch"], torch.float32) for m in METHODS},
}


def own_rows(views: list[View], encoder: str, dtype: torch.dtype) -> list[Input]:
    """This process's rows of the views that an encoder sees."""
    rows = distributed.rows(len(views[0].pixels))
    seen = [x for view in views if (x := view.input(encoder)) is not None]
    return [
        Input(
            x.pixels[rows].to(dtype),
            None if x.kept is None else x.kept[rows],
            None if x.paths is None else x.paths[..., rows].to(dtype),
        )
        for x in seen
    ]


def train(case: str, *, whole: bool = False) -> Results:
    """Two updates: losses, gradients, and all that the method holds afterwards."""
    name, setting, dtype = CASES[case]
    build, values, sides, targets, clip = METHODS[name]
    method = build().to(dtype)
    if case.endswith(PARTS) and not whole:
        method.parts = 5 if distributed.size() == 1 else 3  # of unequal numbers of images
    data = [batch(setting, sides, targets, seed) for seed in (5, 6)]
    trainer = make_trainer(method, values, data, clip)
    out: Results = {}
    for step in range(2):
        result = trainer.step(step, None, None)  # type: ignore[arg-type]
        figures = [result.loss, result.gradient_norm]
        out[f"{case}/step {step}/figures"] = torch.tensor(figures, dtype=torch.float64)
        for parameter, p in method.online.named_parameters():
            if p.grad is not None:
                out[f"{case}/step {step}/gradient/{parameter}"] = p.grad.clone()
    return out | {f"{case}/state/{k}": v.clone() for k, v in method.state_dict().items()}


def make_trainer(
    method: Method, values: Any, data: list[list[View]], clip: float | None
) -> Trainer:
    """One that trains on the rows of ``data`` that are this process's."""
    dtype = next(method.parameters()).dtype
    return Trainer(
        method,
        build_optimizer(method, BETAS),
        type("Fixed", (), {"at": lambda self, step: values[step % 2]})(),
        lambda step, segment, batch: (  # type: ignore[arg-type]
            own_rows(data[step], "online", dtype),
            own_rows(data[step], "target", dtype),
        ),
        Device(torch.device("cpu"), "float32", 1),
        clip,
    )


PHASES = [(Setting(8, 8, True, drop_path=0.5), 12)] * 2 + [(Setting(4, 4, True), 8)] * 3
CHANGE = 3
"""Updates after which other processes go on from a checkpoint."""


def through(first: int, stop: int, out: Path, *, shard: bool = False, parts: int = 1) -> Results:
    """Every method through two phases with a batch of their own, updates ``first`` to ``stop``,
    from a checkpoint to a checkpoint; also each step's loss and gradient norm."""
    results: Results = {}
    for name, (build, values, sides, targets, clip) in METHODS.items():
        method = build().double()
        method.parts = parts
        place_method(method, torch.device("cpu"), shard=shard)
        data = [batch(s, sides, targets, 5 + i, images) for i, (s, images) in enumerate(PHASES)]
        trainer = make_trainer(method, values, data, clip)
        path = out / f"{name}.safetensors"
        if first > 0:
            load_run(path, method, trainer.optimizer)
        for step in range(first, stop):
            result = trainer.step(step, None, None)  # type: ignore[arg-type]
            figures = [result.loss, result.gradient_norm]
            results[f"{name}/step {step}"] = torch.tensor(figures, dtype=torch.float64)
        results |= {f"{name}/{k}": whole(v).clone() for k, v in method.state_dict().items()}
        for parameter, p in method.trained().items():
            if p.grad is not None:
                results[f"{name}/gradient/{parameter}"] = whole(p.grad).clone()
        header = RunHeader(stop, "", {}, "", "", {}, {}, {})
        save_run(path, method, trainer.optimizer, spec(), header)
        distributed.wait()
    return results


def begin(place: Place, out: Path) -> None:
    with processes(place):
        save_file(through(0, CHANGE, out), out / f"begun {place.rank}")


def go_on(place: Place, out: Path) -> None:
    with processes(place):
        save_file(through(CHANGE, len(PHASES), out), out / f"gone on {place.rank}")


def test_four_processes_then_two_equal_one(tmp_path: Path) -> None:
    """Losses and all that is learned, over a change of phase and a resume, in float64."""
    assert start(begin, 4, tmp_path) == [0] * 4
    assert start(go_on, 2, tmp_path) == [0] * 2
    (tmp_path / "alone").mkdir()
    for name, size, (first, stop) in (
        ("begun", 4, (0, CHANGE)),
        ("gone on", 2, (CHANGE, len(PHASES))),
    ):
        alone = through(first, stop, tmp_path / "alone")
        check_equals([load_file(tmp_path / f"{name} {rank}") for rank in range(size)], alone)


def check_equals(parts: list[Results], alone: Results) -> None:
    """What `through` gave in each of several processes, and in one."""
    for key, expected in alone.items():
        assert all(torch.equal(part[key], parts[0][key]) for part in parts), key
        method, _, parameter = key.partition("/")
        gradient = alone.get(f"{method}/gradient/{parameter.partition('.')[2]}")
        zero = gradient is not None and gradient.abs().max() < ZERO
        off = (parts[0][key] - expected).abs().max()
        assert off <= (1e-8 if zero else 1e-10), (key, float(off))


UNEVEN = (slice(0, 3), slice(3, 10))


def norm_data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, GlobalBatchNorm]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(10, 4, dtype=torch.float64, generator=g) * 3 + 1
    c = torch.randn(10, 4, dtype=torch.float64, generator=g)
    norm = GlobalBatchNorm(4).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=g)
        norm.bias.uniform_(-1, 1, generator=g)
    return x.to(dtype), c.to(dtype), norm


def norm_loss(y: Tensor, c: Tensor) -> Tensor:
    return (c * y.sin() + y.square() * c.cos()).sum()


def normalise() -> Results:
    """The batch norm on 3 rows here and 7 there, with and without affine parameters."""
    rows = UNEVEN[distributed.rank()]
    x, c, norm = norm_data()
    x, c = x[rows].requires_grad_(), c[rows]
    y = norm(x)
    norm_loss(y, c).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    out = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    plain = x.detach().clone().requires_grad_()
    y = GlobalBatchNorm(4, affine=False)(plain)
    norm_loss(y, c).backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    out |= {"plain y": y.detach(), "plain x": plain.grad}
    shifted = GlobalBatchNorm(4, affine=False)(x.detach().float() + 4096)
    half = GlobalBatchNorm(4)(x.detach().bfloat16())
    out |= {"shifted": shifted, "half": half.detach()}
    return {f"norm/{k}": v.contiguous() for k, v in out.items()}


def gather() -> Results:
    own = (torch.arange(6.0).reshape(3, 2) + 10 * distributed.rank()).requires_grad_()
    every = distributed.gather(own)
    upstream = torch.arange(12.0).reshape(6, 2) * (1 + distributed.rank())
    (every * upstream).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    return {"gather/every": every.detach(), "gather/gradient": own.grad}


def separate_norms() -> Results:
    """The negative control: batch norms that know only their own process's rows."""
    global_forward = GlobalBatchNorm.forward
    GlobalBatchNorm.forward = nn.BatchNorm1d.forward  # type: ignore[method-assign]
    try:
        return {f"separate/{k}": v for k, v in train("moco, full").items()}
    finally:
        GlobalBatchNorm.forward = global_forward  # type: ignore[method-assign]


PAIRED = """
method moco; data digits; image 32; batch 64; head 32 16; precision float32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
warmup 1 epochs; choices drop 0 0.5 patch 8 16; epochs 0-2: auto;
"""


def paired(*, shard: bool = False) -> Results:
    """Gradients of two settings on the same images, and what is estimated from four of each."""
    loaded = compile_text(PAIRED, "test.fcs", Request())
    data = open_split("digits", "train", announce=lambda text: None)
    loader = DecodedLoader(data, 32, 1)
    device = Device(torch.device("cpu"), "float32", 1)
    method = place_method(build_method(loaded.config, 0), device.device, shard=shard)
    gradients = PairedGradients(method, loaded.config, data, lambda: loader, device, 0, 16)
    full = full_views(loaded.config)
    settings = [rung.views for rung in ladder(loaded.config, 64)]
    out: Results = {}
    for number, views in enumerate((full, settings[0])):
        ((index, batch),) = gradients.batches([3])
        out[f"paired/gradient {number}"] = gradients.gradient(index, views, batch, 0.5)
    found = measure(gradients, full, settings, 0.5, groups=2, pairs=2)
    figures = [(*error.bias2, *error.variance, *error.signal) for error in found]
    return out | {"paired/figures": torch.tensor(figures, dtype=torch.float64)}


def all_of_it() -> Results:
    out: Results = {}
    for case in CASES:
        out |= train(case)
    return out | normalise() | gather() | separate_norms() | paired()


def work(place: Place, out: Path) -> None:
    with processes(place):
        save_file(all_of_it(), out / str(place.rank))


def fail(place: Place, out: Path) -> None:
    with processes(place):
        if place.rank == 1:
            raise DataError("image 7 is damaged")
        distributed.wait()


def be_killed(place: Place, out: Path) -> None:
    with processes(place):
        if place.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.wait()


def miss_others(place: Place, out: Path) -> None:
    os.environ["FASTCL_JOIN_TIMEOUT"] = "2"
    with processes(replace(place, size=place.size + 2, hosts=("host0", "host1", "host9"))):
        pass


def wait_unreached(place: Place, out: Path) -> None:
    """The second process never gets to the group, as where a network lets too little through."""
    os.environ["FASTCL_JOIN_TIMEOUT"] = "2"
    if place.rank == 1:
        distributed.connect = lambda *_: time.sleep(100)  # type: ignore[assignment]
    with processes(place):
        pass


def tell(target: Callable[[Place, Path], None], place: Place, out: Path) -> None:
    """Run ``target`` in a process of its own, which leaves word of its error."""
    torch.set_num_threads(1)
    try:
        target(place, out)
    except FastclError as error:
        (out / f"{target.__name__} {place.rank}").write_text(error.message)
        raise SystemExit(error.exit_code) from None


def start(target: Callable[[Place, Path], None], size: int, out: Path) -> list[int | None]:
    """Run ``target`` in ``size`` processes; returns their exit statuses. They are forked from one
    that has imported what they need, and computed nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    places = [Place(r, size, r, size, "127.0.0.1", port, f"host{r}") for r in range(size)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # or it cannot import this module
    members = [context.Process(target=tell, args=(target, place, out)) for place in places]
    for member in members:
        member.start()
    for member in members:
        member.join(timeout=120)
    return [member.exitcode for member in members]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes wrote."""
    out = tmp_path_factory.mktemp("together")
    assert start(work, PROCESSES, out) == [0] * PROCESSES
    return out


@pytest.fixture(scope="module")
def together(written: Path) -> list[Results]:
    """What each of two processes got."""
    return [load_file(written / str(r)) for r in range(PROCESSES)]


def test_gradient_errors_are_those_of_the_global_batch(together: list[Results]) -> None:
    """To rounding in float32, and to the bit the same in both processes, which decide by them."""
    alone = paired()
    for name, value in alone.items():
        own = [results[name] for results in together]
        assert torch.equal(own[0], own[1])
        assert (own[0] - value).norm() <= 1e-3 * value.norm(), name


@pytest.mark.parametrize(
    ("target", "statuses", "said"),
    [
        (fail, [1, 2, 1], "image 7 is damaged"),
        (be_killed, [1, -9, 1], "process 1 (on host1) of 3 ended without a word"),
        (
            miss_others,
            [1, 1],
            "processes 2-3 of 4 did not come within 2 s, no word from host9; "
            "there are process 0 (on host0), process 1 (on host1)",
        ),
        (
            wait_unreached,
            [1, 1],
            "within 2 s process 0 (on host0), process 1 (on host1) did not connect to all others",
        ),
    ],
)
def test_one_process_says_why_all_end(
    target: Callable[[Place, Path], None], statuses: list[int], said: str, tmp_path: Path
) -> None:
    assert start(target, len(statuses), tmp_path) == statuses
    assert [path.read_text() for path in tmp_path.iterdir()] == [said]


@pytest.mark.parametrize("case", [c for c, (_, _, dtype) in CASES.items() if dtype.itemsize == 8])
def test_two_processes_equal_one(together: list[Results], case: str) -> None:
    """Loss, gradients, weights, average and centre through two updates, in float64. In parts, they
    equal those of the whole batch, too."""
    alone = train(case, whole=True)
    parts = train(case) if case.endswith(PARTS) else alone
    for name, expected in alone.items():
        assert torch.equal(together[0][name], together[1][name]), name
        gradient = alone.get(f"{case}/step 0/gradient/{name.partition('/state/online.')[2]}")
        # AdamW makes an update of a gradient's rounding where it is zero in theory.
        zero = gradient is not None and gradient.abs().max() < ZERO
        for other in (together[0][name], parts[name]):
            assert (other - expected).abs().max() <= (1e-8 if zero else 1e-10), name


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_in_float32(together: list[Results], method: str) -> None:
    alone = train(f"{method}, float32")
    first = f"{method}, float32/step 0/"
    whole = alone[first + "figures"][1]
    for name, expected in alone.items():
        assert torch.equal(together[0][name], together[1][name]), name
        if "/state/" in name or name.startswith(f"{method}, float32/step 1/gradient"):
            continue
        # What a batch norm removes has a gradient of zero, and rounding for its only value.
        allowed = 1e-5 * float(expected.norm()) + 1e-6 * float(whole)
        assert float((together[0][name] - expected).norm()) <= allowed, name


def test_separate_batch_norms_are_noticed(together: list[Results]) -> None:
    alone = train("moco, full")
    off = max(float((together[0][f"separate/{k}"] - v).abs().max()) for k, v in alone.items())
    assert off > 1e-4


def test_batch_norm_equals_its_formula_on_uneven_rows(together: list[Results]) -> None:
    x, c, norm = norm_data()
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    x.requires_grad_()
    deviation = x - x.sum(0) / 10
    y = deviation / (deviation.square().sum(0) / 10 + norm.eps).sqrt()
    both = {k: torch.cat([r[f"norm/{k}"] for r in together]) for k in ("y", "x")}
    plain = {k: torch.cat([r[f"norm/plain {k}"] for r in together]) for k in ("y", "x")}
    (expected,) = torch.autograd.grad(norm_loss(y, c), [x], retain_graph=True)
    assert (plain["y"] - y).abs().max() <= 1e-12
    assert (plain["x"] - expected).abs().max() <= 1e-12
    y = y * weight + bias
    to_x, to_weight, to_bias = torch.autograd.grad(norm_loss(y, c), [x, weight, bias])
    assert (both["y"] - y).abs().max() <= 1e-12
    assert (both["x"] - to_x).abs().max() <= 1e-12
    for name, total in (("weight", to_weight), ("bias", to_bias)):
        assert (sum(r[f"norm/{name}"] for r in together) - total).abs().max() <= 1e-12


def test_batch_norm_survives_a_large_mean_and_keeps_the_dtype(together: list[Results]) -> None:
    x, _, _ = norm_data()
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    shifted = torch.cat([r["norm/shifted"] for r in together])
    assert (shifted - expected).abs().max() < 2e-3  # x + 4096 itself is rounded to 2.4e-4
    half = torch.cat([r["norm/half"] for r in together])
    assert half.dtype == torch.bfloat16 and (half - expected).abs().max() < 3e-2


def test_batch_norm_alone_is_torchs_bit_for_bit() -> None:
    x, c, norm = norm_data(torch.float32)
    theirs = nn.BatchNorm1d(4, track_running_stats=False)
    assert theirs.state_dict().keys() == norm.state_dict().keys()
    theirs.load_state_dict(norm.state_dict())
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    norm_loss(norm(one), c).backward()  # type: ignore[no-untyped-call]
    norm_loss(theirs(other), c).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert torch.equal(norm.weight.grad, theirs.weight.grad)  # type: ignore[arg-type]


def test_gathered_rows_pass_every_gradient_back(together: list[Results]) -> None:
    one = torch.arange(6.0).reshape(3, 2)
    every = torch.cat([one, one + 10])
    upstream = torch.arange(12.0).reshape(6, 2) * 3
    for rank, result in enumerate(together):
        assert torch.equal(result["gather/every"], every)
        assert torch.equal(result["gather/gradient"], upstream[3 * rank : 3 * rank + 3])


@contextmanager
def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "size", lambda: size)
        yield


class CountingLoader:
    """Every image is one pixel of its own number."""

    def __init__(self) -> None:
        self.decoded = 0

    @contextmanager
    def stream(self, indices: Any, size: int) -> Iterator[Iterator[Decoded]]:
        def parts() -> Iterator[Decoded]:
            for start in range(0, len(indices), size):
                part = torch.from_numpy(indices[start : start + size].copy())
                self.decoded += len(part)
                yield Decoded(part, part)

        yield parts()


PLAN = """method dino; image 32; batch 12; images 40; locals 2 16; drop_path 0.1; head 64 32 128;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
epochs 0-2: drop 0.5 patch 16; epochs 2-3: drop 0.25 batch 18;"""


@pytest.mark.parametrize("first", [0, 2, 5, 7])
def test_the_order_does_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Resumed anywhere; and every image is decoded once, by one process."""
    plan = compile_text(PLAN, "test.fcs", Request()).plan
    whole = list(batches(plan, CountingLoader(), 4, 0, plan.steps))  # type: ignore[arg-type]
    for size in (2, 3):
        shares, loaders = [], [CountingLoader() for _ in range(size)]
        for rank, loader in enumerate(loaders):
            with as_process(monkeypatch, rank, size):
                shares.append(list(batches(plan, loader, 4, first, plan.steps)))  # type: ignore[arg-type]
        for (step, segment, alone), *parts in zip(whole[first:], *shares, strict=True):
            assert {(s, g) for s, g, _ in parts} == {(step, segment)}
            assert torch.equal(torch.cat([b.images for _, _, b in parts]), alone.images)
            assert all((b.indices == alone.indices).all() for _, _, b in parts)
        images = plan.images_at(plan.steps) - plan.images_at(first)
        assert sum(loader.decoded for loader in loaders) == images


def test_every_draw_is_made_for_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process's views, tokens and paths are its rows of those of one process, bit for bit."""
    loaded = compile_text(PLAN, "test.fcs", Request())
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8, generator=g)
    indices = np.random.default_rng(0).permutation(40)[:12]
    sizes = np.random.default_rng(1).integers(20, 40, (2, 40))
    data = type("Sizes", (), {"heights": sizes[0], "widths": sizes[1]})()
    make = InputMaker(loaded.config, data, 4, torch.device("cpu"))
    segment = loaded.plan.segments[0]
    whole = make(3, segment.views, Batch(images, indices, slice(0, 12)))
    for rank in range(3):
        rows = slice(4 * rank, 4 * rank + 4)
        own = make(3, segment.views, Batch(images[rows], indices, rows))
        for one, part in zip((*whole[0], *whole[1]), (*own[0], *own[1]), strict=True):
            assert torch.equal(one.pixels[rows], part.pixels)
            if one.kept is not None:
                assert torch.equal(one.kept[rows], part.kept)  # type: ignore[arg-type]
            if one.paths is not None:
                assert torch.equal(one.paths[..., rows], part.paths)  # type: ignore[arg-type]
    assert whole[0][0].kept is not None and whole[0][0].paths is not None


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    plan = compile_text(PLAN, "test.fcs", Request()).plan
    check_batches(plan, 6)
    with pytest.raises(ConfigError, match=r"batch 18 .* 4 processes"):
        check_batches(plan, 4)


# A smooth head: a ReLU at 1e-7 may turn either way, and its gradient with it.
SCHEDULE = """
method dino; data digits; image 32; batch 128; lr 1e-3; warmup 1 epochs; head 64 32 128;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
locals 2 16; drop_path 0.1; precision float32; knn 14 steps; gradient_error 7 steps;
epochs 0-2: drop 0.5 patch 16;
epochs 2-3: drop 0.25 batch 100;
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(out, SCHEDULE, log_every=1)
    return out


def check_equal_run(out: Path, alone: Path) -> None:
    assert {p.name for p in out.iterdir()} == {p.name for p in alone.iterdir()}
    lines, expected = metrics(out), metrics(alone)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, other in zip(lines, expected, strict=True):
        for key in other.keys() - CLOCK:
            value = other[key]
            wanted = pytest.approx(value, rel=2e-4) if isinstance(value, float) else value
            if key == "knn":  # rounding may turn a vote
                wanted = pytest.approx(value, abs=0.01)
            if key == "grad_error":
                check_equal_error(line[key], value)
            else:
                assert line[key] == wanted, (line["step"], key)
    assert lines[-1]["grad_error"] is not None


def check_equal_error(error: dict[str, Any] | None, other: dict[str, Any] | None) -> None:
    """Differences of products have the products' rounding: as a share of the variance."""
    if error is None or other is None:
        assert error is other
        return
    assert [error[k] for k in ("pairs", "batch")] == [other[k] for k in ("pairs", "batch")]
    for name in ("bias2", "variance", "signal"):
        assert error[name] == pytest.approx(other[name], abs=1e-2 * other["variance"])


def test_sigterm_saves_and_another_number_of_processes_goes_on(alone: Path, tmp_path: Path) -> None:
    schedule, out = tmp_path / "test.fcs", tmp_path / "run"
    schedule.write_text(SCHEDULE)
    options = ["--out", str(out), "--log-every", "1", "--save-every", "100"]
    process = cli("run", str(schedule), "--gpus", "2", *options)
    wait_for_step(process, out, 3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    done = len(metrics(out))
    # That is no error, and one process says it.
    assert stderr.splitlines()[-2:] == [
        f"stopped by SIGTERM after {done} of {STEPS} steps",
        f"help: the same command goes on with `--resume auto --out {out}`",
    ]
    assert "error" not in stderr and stderr.count("stopped by") == 1
    assert 3 <= done < STEPS
    assert (out / "checkpoints" / f"step-{done:08d}.safetensors").exists()
    assert json.loads((out / "config.json").read_text())["processes"] == 2
    run(out, SCHEDULE, resume="auto", log_every=1)
    check_equal_run(out, alone)
