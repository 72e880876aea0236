"""The file of any checkpoint: tensors, and one JSON object in the header's ``fastcl`` entry.

That carries a digest of itself and of every tensor's bytes, so that a single bit that has changed
on the way is noticed (SHA-256, which processors compute at 0.7 to 2 GB/s).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastcl_cli import __version__
from fastcl_cli.errors import CheckpointError
from fastcl_cli.files import replacing
from fastcl_cli.processes import distributed
from fastcl_cli.shards import fill, gathered
from fastcl_cli.tensor_file import write_tensors

FORMAT = 1


def write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write a file, in process 0: tensors that are shared out are gathered there, for which all
    processes must come here.

    Raises:
        OSError: it could not be written; an older one of that name is untouched.
    """
    header = {"format": FORMAT, "fastcl": __version__, **header}
    tensors = {name: value.contiguous() for name, value in gathered(tensors).items()}
    if distributed.rank() > 0:
        return
    header["digest"] = digest_of(header, tensors)
    with replacing(path) as part:
        # One entry only: safetensors writes several in random order, and equal runs should write
        # equal files.
        write_tensors(part, tensors, {"fastcl": json.dumps(header, sort_keys=True)})


def digest_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a header without its digest, and of every tensor's name, type, shape and
    bytes, in the order of the names."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """A file's own description.

    Raises:
        CheckpointError: it is missing, damaged, or not fastcl's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata.get("fastcl", "null"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(header, dict) or header.get("kind") not in ("run", "backbone"):
        raise CheckpointError(f"{path} was not written by fastcl: its header has no fastcl entry")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {repr(header.get('format'))[:40]}; this version reads {FORMAT}"
        )
    return header


def read_tensors(path: Path, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a file, held to the digest in its ``header`` (older files have none).

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same = "digest" not in header or header["digest"] == digest_of(header, tensors)
    except (OSError, SafetensorError, RuntimeError) as error:  # of torch: types that it lacks
        raise _damaged(path, error) from error
    if not same:
        raise CheckpointError(
            f"{path} is damaged: its bytes are not those that were written",
            "use an older checkpoint of the run, or copy the file again",
        )
    return tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete safetensors file: {error}",
        "use an older checkpoint of the run, or copy the file again",
    )


def check_whole(path: Path) -> None:
    """Read a checkpoint from one end to the other.

    Raises:
        CheckpointError: it is missing or cut short, or is not what was written.
    """
    read_tensors(path, read_header(path))


def is_finite(path: Path) -> bool:
    """Whether a checkpoint is whole and every number in it is finite."""
    try:
        tensors = read_tensors(path, read_header(path))
    except CheckpointError:
        return False
    return all(bool(value.isfinite().all()) for value in tensors.values())


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


@torch.no_grad()
def load_into(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of ``path`` into a module's own, by name.

    Raises:
        CheckpointError: a name, shape or dtype is not the module's.
    """
    own = module.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        side = "lacks" if name in own else "has an unknown"
        raise CheckpointError(f"{path} {side} tensor {name}", "it belongs to another model")
    for name, value in own.items():
        given = tensors[name]
        if given.shape != value.shape or given.dtype != value.dtype:
            raise CheckpointError(
                f"{path}: {name} is {given.dtype} {tuple(given.shape)}, "
                f"the model needs {value.dtype} {tuple(value.shape)}",
                "it belongs to another model",
            )
        fill(value, given)
