"""The schedule half runs without torch, and heavy libraries are imported in one place each."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fastcl_cli"
HEAVY = (
    "torch", "torchvision", "timm", "ffcv", "numba", "cv2", "numpy", "scipy", "safetensors",
    "sklearn", "onnx", "onnxruntime", "tensorboard", "wandb",
)  # fmt: skip
SCHEDULE_HALF = (
    "__init__ __main__ errors events units plan cost config vit_table files extras json_fields "
    "run_files processes/launchers"
)
HALF_FOLDERS = ("schedule/", "estimate/", "report/", "cli/")
TENSOR_HALF = ("compression", "model", "methods", "data")
SCHEDULE_MODULES = ("schedule", "plan", "cost", "estimate")

LINES = (
    "errors rng files extras json_fields run_files processes.launchers",
    "config units",
    "vit_table plan cost schedule estimate events",
    "processes.distributed transfer fused heap machine_code",
    "shards",
    "processes",
    "compression",
    "model",
    "data methods",
    "tensor_file",
    "checkpoint",
    "evaluate.images evaluate.features evaluate.metrics evaluate.knn",  # a run is judged by them
    "train gradient_error",
    "evaluate",
    "export search doctor report",
    "loggers",
    "ui",
    "cli",
    "__main__",
)

BLOCKED = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["fastcl", *sys.argv[1:]]
from fastcl_cli.cli.main import main
try:
    main()
finally:
    assert not set({HEAVY!r}) & set(sys.modules)
"""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Absolute names that a file imports, and whether at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ("fastcl_cli", *path.relative_to(PACKAGE).parts[:-1])
    found = []
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found += [(f"{module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("rich", ("ui/",)),
        ("typer", ("cli/",)),
        ("lark", ("schedule/parser.py",)),
        ("ffcv", ("data/",)),
        ("torchvision", ("data/",)),
        ("onnx", ("export/",)),
        ("onnxruntime", ("export/",)),
        ("tensorboard", ("loggers/",)),
        ("wandb", ("loggers/",)),
        ("pickle", ("data/cifar.py",)),
    ],
)
def test_a_library_has_one_home(library: str, allowed: tuple[str, ...]) -> None:
    users = {home(f) for f in FILES if any(n.split(".")[0] == library for n, _ in imports(f))}
    assert users
    assert {user for user in users if not user.startswith(allowed)} == set()


def test_the_schedule_half_imports_nothing_heavy() -> None:
    names = {f"{name}.py" for name in SCHEDULE_HALF.split(" ")}
    files = [f for f in FILES if home(f) in names or home(f).startswith(HALF_FOLDERS)]
    assert len(files) > 20
    for file in files:
        heavy = [n for n, top in imports(file) if n.split(".")[0] in HEAVY and top]
        assert not heavy, home(file)


def line_of(name: str) -> int:
    """Which of `LINES` a module stands on."""
    parts = name.split(".")
    for index, line in enumerate(LINES):
        if set(line.split(" ")) & {parts[0], ".".join(parts[:2])}:
            return index
    raise AssertionError(f"{name} stands on no line: give it one")


def test_lower_lines_import_from_higher_ones_only() -> None:
    for file in FILES:
        own = home(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if own == "__init__":
            continue
        for name, _ in imports(file):
            module = name.removeprefix("fastcl_cli.")
            if name.startswith("fastcl_cli.") and module != "__version__":
                assert line_of(module) <= line_of(own), f"{own} imports {module}"


def test_the_tensor_half_knows_no_schedules() -> None:
    for file in FILES:
        if home(file).split("/")[0] in TENSOR_HALF:
            used = {n.split(".")[1] for n, _ in imports(file) if n.startswith("fastcl_cli.")}
            assert not used & set(SCHEDULE_MODULES), home(file)


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "dino_opt", "--json"],
        ["validate", "moco_opt"],
        ["estimate", "--budget", "100gpuh", "--json"],
        ["--help"],
        ["--version"],
    ],
)
def test_commands_answer_without_torch(arguments: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    if "--json" in arguments:
        assert json.loads(result.stdout)["schema_version"] == 1


def test_validate_adds_little_to_the_libraries_that_it_needs() -> None:
    """Processor time, the best of five, over what typer, lark and rich take to import: about three
    times that, where a promise of half a second would hold on some machines only."""

    def best(command: list[str]) -> float:
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True, cwd=PACKAGE.parent)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    libraries = best([sys.executable, "-c", "import typer.main, lark, rich.table"])
    validate = best([sys.executable, "-m", "fastcl_cli", "validate", "dino_opt"])
    print(f"validate {validate:.3f} s, {validate / libraries:.1f} x its libraries")
    assert validate < 5 * libraries
