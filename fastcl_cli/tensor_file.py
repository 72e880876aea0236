"""Writing safetensors, where a disk that is full is an `OSError` as it is for any other file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastcl_cli.files import new_file_mode

_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How safetensors ends the text of an error that the system reported."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors of the processor's memory, and texts for the header.

    Raises:
        OSError: the file could not be written; there may be a part of it.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
        path.chmod(new_file_mode())  # others may read it as they may any file of the run
    except SafetensorError as error:
        if (found := _NUMBER.search(str(error))) is None:
            raise OSError(str(error)) from error
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
