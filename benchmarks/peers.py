"""One training step without compression: ours beside other projects' own parts.

Same ViT-S/16, batch, precision, views and optimizer; a step is forward, loss, backward, update and
average. Ours starts from decoded images and makes its views too; the others' are ready. Each has a
process of its own. Where other work runs beside, the processor's seconds say more than the wall's.

    moco-v3     model and loss of facebookresearch/moco-v3 (--moco DIR, a checkout), timm's ViT
    dino        networks, head and loss of facebookresearch/dino (--dino DIR, a checkout)
    lightly     heads and losses of the package lightly (if it is installed), timm's ViT

`--opt` adds ours by the built-in `opt` schedule: a step of each of its phases, which count as many
images of the mean step as they have.

    python benchmarks/peers.py --moco DIR --dino DIR [--ours bf16] [--opt] [--batch 32] [--record]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
from common import record, table
from torch import Tensor, nn

from fastcl_cli.config import RunConfig
from fastcl_cli.heap import give_back_memory
from fastcl_cli.methods.build import build_method
from fastcl_cli.schedule import load
from fastcl_cli.train.device import Device, choose_device
from fastcl_cli.train.inputs import Batch, InputMaker, decoded_side
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.schedules import Schedules
from fastcl_cli.train.step import Trainer
from fastcl_cli.train.synthetic import SyntheticImages

MODEL = "vit_small_patch16_224"
Seconds = tuple[float, float]
"""Of the wall's clock, and of the processor's."""
Step = Callable[[], Seconds]


def timed(work: Callable[[], object]) -> Seconds:
    """What some work takes."""
    since, worked = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - since, time.process_time() - worked


def ours(method: str, batch: int, device: Device, schedule: str = "full") -> Step:
    """Our own trainer, views included: returns what does a step of every phase of a built-in
    schedule, and says what its mean step takes of the wall's and of the processor's seconds."""
    loaded = load(f"{method}_{schedule}", overrides=[f"batch={batch}"])
    plan = loaded.plan
    config: RunConfig = loaded.config
    images = SyntheticImages()
    built = build_method(config, 0).to(device.device)
    trainer = Trainer(
        built,
        build_optimizer(built, config.betas),
        Schedules(config, loaded.plan, built.momentum_lead),
        InputMaker(config, images, 0, device.device),
        device,
        config.clip,
    )
    side = decoded_side(config.image, images)
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    indices = torch.arange(batch).numpy()
    part = Batch(pixels, indices, slice(0, batch))
    numbers = iter(range(10**6))

    def mean_step() -> Seconds:
        wall = processor = 0.0
        for segment in plan.segments:
            share = (segment.end_step - segment.first_step) / plan.steps
            taken = timed(lambda views=segment.views: trainer.step(next(numbers), views, part))
            wall, processor = wall + share * taken[0], processor + share * taken[1]
        return wall, processor

    return mean_step


def views(sides: Sequence[int], batch: int, device: Device) -> list[Tensor]:
    return [torch.randn(batch, 3, side, side, device=device.device) for side in sides]


def stepping(
    device: Device, online: nn.Module, loss: Callable[[], Tensor], after: Callable[[], None]
) -> Step:
    """A plain step: forward, backward, clipping by nothing, fused AdamW, ``after``."""
    trained = [p for p in online.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9, fused=True)

    def step() -> float:
        with device.autocast():
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        after()
        return value.item()

    return lambda: timed(step)


def average(target: nn.Module, online: nn.Module, momentum: float = 0.99) -> None:
    """The average as those repositories have it: tensor by tensor."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.mul_(momentum).add_(new.detach(), alpha=1 - momentum)


def moco_v3(folder: Path, batch: int, device: Device) -> Step:
    builder = module(folder / "moco" / "builder.py")
    model = builder.MoCo_ViT(partial(timm.create_model, MODEL), 256, 4096, 0.2).to(device.device)
    first, second = views([224, 224], batch, device)
    return stepping(device, model, lambda: model(first, second, 0.99), lambda: None)


def dino(folder: Path, batch: int, device: Device) -> Step:
    sys.path.insert(0, str(folder))
    networks, utils = module(folder / "vision_transformer.py"), module(folder / "utils.py")
    main_dino = module(folder / "main_dino.py")

    def network(drop_path: float) -> nn.Module:
        head = networks.DINOHead(384, 65536, False, True)
        backbone = networks.vit_small(drop_path_rate=drop_path)
        wrapped: nn.Module = utils.MultiCropWrapper(backbone, head)
        return wrapped.to(device.device)

    student, teacher = network(0.1), network(0.0)
    criterion = main_dino.DINOLoss(65536, 10, 0.04, 0.04, 0, 100).to(device.device)
    crops = views([224] * 2 + [96] * 8, batch, device)

    def loss() -> Tensor:
        with torch.no_grad():
            told = teacher(crops[:2])
        value: Tensor = criterion(student(crops), told, 0)
        return value

    return stepping(device, student, loss, lambda: average(teacher, student))


def lightly(method: str, batch: int, device: Device) -> Step:
    from lightly import loss as losses
    from lightly.models.modules import heads

    def network(head: nn.Module) -> nn.Module:
        backbone = timm.create_model(MODEL, num_classes=0, dynamic_img_size=True)
        return nn.Sequential(backbone, head).to(device.device)

    if method == "simclr":
        both = network(heads.SimCLRProjectionHead(384, 4096, 256, num_layers=3))
        criterion = losses.NTXentLoss(0.2)
        first, second = views([224, 224], batch, device)
        return stepping(device, both, lambda: criterion(both(first), both(second)), lambda: None)
    if method == "moco":
        projector = partial(heads.MoCoProjectionHead, num_layers=3, batch_norm=True)
        query = network(projector(384, 4096, 256))
        key = copy.deepcopy(query).requires_grad_(False)
        predictor = heads.MoCoProjectionHead(256, 4096, 256, 2, True).to(device.device)
        criterion = losses.NTXentLoss(0.2)
        one, two = views([224, 224], batch, device)

        def contrast() -> Tensor:
            with torch.no_grad():
                k1, k2 = key(one), key(two)
            q1, q2 = predictor(query(one)), predictor(query(two))
            value: Tensor = criterion(q1, k2) + criterion(q2, k1)
            return value

        trained = nn.ModuleList([query, predictor])
        return stepping(device, trained, contrast, lambda: average(key, query))
    # Two of their own: a head with weight norm cannot be copied.
    student, teacher = (network(heads.DINOProjectionHead(384, 2048, 256, 65536)) for _ in range(2))
    teacher.requires_grad_(False)
    dino_loss = losses.DINOLoss(65536).to(device.device)
    crops = views([224] * 2 + [96] * 8, batch, device)

    def loss() -> Tensor:
        with torch.no_grad():
            told = [teacher(crop) for crop in crops[:2]]
        value: Tensor = dino_loss(told, [student(crop) for crop in crops], epoch=0)
        return value

    return stepping(device, student, loss, lambda: average(teacher, student))


def module(path: Path):  # type: ignore[no-untyped-def]
    """A file of a checkout as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made
    spec.loader.exec_module(made)
    return made


def contenders(method: str, options: argparse.Namespace) -> list[str]:
    """Whose steps there are of a method, ours first."""
    found = ["fastcl", *(f"fastcl, {precision}" for precision in options.ours)]
    if options.opt:
        found += [f"{name}, opt" for name in found]
    if method == "moco" and options.moco:
        found.append("moco-v3")
    if method == "dino" and options.dino:
        found.append("dino")
    if importlib.util.find_spec("lightly") is not None:
        found.append("lightly")
    return found


def build(name: str, method: str, options: argparse.Namespace) -> Step:
    """A contender's step, in a process of its own."""
    device = choose_device(options.precision)
    torch.set_num_threads(device.threads)
    torch.manual_seed(0)
    if name.startswith("fastcl"):
        words = name.split(", ")[1:]
        precision = next((word for word in words if word != "opt"), options.precision)
        own = choose_device(precision)
        own.begin()  # as a run does; the others' processes are left as they are
        return ours(method, options.batch, own, "opt" if "opt" in words else "full")
    # Their losses ask for a process group and for CUDA.
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    if device.device.type == "cpu":
        Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    if name == "moco-v3":
        return moco_v3(options.moco, options.batch, device)
    if name == "dino":
        return dino(options.dino, options.batch, device)
    return lightly(method, options.batch, device)


def serve(name: str, method: str, options: argparse.Namespace, end: Connection) -> None:
    """Do a step whenever asked, after one that is not counted; answer with its seconds, and the
    processor's. Meanwhile the others have the memory, which is too small for all at once."""
    step = build(name, method, options)
    step()
    give_back_memory()
    end.send(None)
    while end.recv():
        step()
        end.send(step())
        give_back_memory()


def measure(method: str, options: argparse.Namespace) -> dict[str, list[Seconds]]:
    """Both times of each contender's step in every round; those that wait do nothing."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name in contenders(method, options):
        here, there = context.Pipe()
        context.Process(target=serve, args=(name, method, options, there), daemon=True).start()
        there.close()  # so that the end of the process is the end of what comes from it
        here.recv()
        ends[name] = here
    times: dict[str, list[Seconds]] = {name: [] for name in ends}
    for _ in range(options.repetitions):
        for name, end in ends.items():
            end.send(True)
            times[name].append(end.recv())
    for end in ends.values():
        end.send(False)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["moco", "simclr", "dino"])
    parser.add_argument("--moco", type=Path, help="checkout of facebookresearch/moco-v3")
    parser.add_argument("--dino", type=Path, help="checkout of facebookresearch/dino")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="float32", help="of the others, and of ours first")
    parser.add_argument("--ours", nargs="*", default=[], help="other precisions of ours")
    parser.add_argument("--opt", action="store_true", help="ours by the `opt` schedule, too")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    rows = []
    for method in options.methods:
        times = measure(method, options)
        for name, values in times.items():
            wall, processor = zip(*values, strict=True)
            pairs = list(zip(times["fastcl"], values, strict=True))
            ratios = [statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1)]
            cells = [f"{statistics.median(wall):.2f}", f"{min(wall):.2f}-{max(wall):.2f}"]
            cells += [f"{ratios[0]:.3f}", f"{statistics.median(processor):.2f}"]
            rows.append([method, name, *cells, f"{ratios[1]:.3f}"])
    header = [
        "method", "step of", "s/step", "least-greatest", "fastcl / this", "processor, s",
        "fastcl / this, processor",
    ]  # fmt: skip
    body = table(header, rows) + f"\n\nBatch {options.batch}, {options.repetitions} rounds in turn."
    if options.record:
        title = "A step without compression beside other projects'"
        record(title, body, choose_device(options.precision))
    else:
        print(body)


if __name__ == "__main__":
    main()
