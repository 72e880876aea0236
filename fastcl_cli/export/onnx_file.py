"""An ONNX file: ``images`` float32 (batch, 3, side, side), normalised -> ``features`` (batch, D).

torch writes the graph. What it adds about this machine (source paths, stack traces) is taken out;
how images are prepared is put in, as the model's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcl_cli.export.backbone import Backbone
from fastcl_cli.export.compare import Network
from fastcl_cli.export.place import beside
from fastcl_cli.model.vit import build_vit

OPSET = 18
"""The one that torch's exporter is written for; onnxruntime reads it from 1.14 on."""
LARGEST = 2**31 - 2**24
"""Bytes of weights in one file, for protobuf ends at 2 GiB: larger ones go `beside` it."""


def write(path: Path, backbone: Backbone) -> None:
    """Write the file, and `beside` it the weights where they are too large for one."""
    import onnx

    model = _graph(backbone)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for item in (model.graph, *model.graph.input, *model.graph.output, *model.graph.value_info):
        item.ClearField("metadata_props")
    about = {"preprocessing": backbone.preprocessing, **backbone.provenance}
    onnx.helper.set_model_props(model, {"fastcl": json.dumps(about, sort_keys=True)})
    size = sum(value.nbytes for value in backbone.encoder.vit.state_dict().values())
    onnx.save_model(
        model,
        path,
        save_as_external_data=size > LARGEST,
        location=beside(path).name,
    )
    onnx.checker.check_model(path)


def _graph(backbone: Backbone) -> Any:
    # A plain timm model: the encoder's blocks have a branch that training multiplies.
    vit = build_vit(backbone.spec.model, backbone.spec.image)
    vit.load_state_dict(backbone.encoder.vit.state_dict())
    side = backbone.spec.image
    with _quiet():
        program = torch.onnx.export(
            vit.eval(),
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks to its own developers."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def load(path: Path, backbone: Backbone) -> Network:
    """Load it as the printed line does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def network(images: Tensor) -> Tensor:
        (features,) = session.run(["features"], {"images": images.numpy()})
        return torch.from_numpy(features)

    return network


def line(path: Path, backbone: Backbone) -> str:
    """The Python that loads it."""
    return f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'images': images}})[0]"
