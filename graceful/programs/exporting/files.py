"""Write a version as an ONNX or PT2 file, quantise it, and run the file as if it were the version. In the driver."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import SpecError
from graceful.learners import Batch, Learner, encoder_for, run
from graceful.learners.batch import leaves
from graceful.models.base import CODE_FAULTS, Outputs

Format = Literal["onnx", "pt2"]
NAMES = ("output_embedding", "output_logits")
"""Names of a file's outputs; plain words may be names of operations within it."""
ONLY = "input"
"""Name of the input where a batch is one tensor."""
PROVENANCE = "graceful.json"
Runner = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]


def package(name: str) -> Any:
    """Import a package of the extra `export`.

    Raises:
        SpecError: It is missing, or does not work.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise SpecError(f"export: {name} cannot be imported ({e}); pip install 'graceful-ai[export]'") from e


class Inference(nn.Module):
    """The tensors of a batch in, embedding and logits out: what a file holds of a version."""

    def __init__(self, network: nn.Module, learner: Learner, paths: Sequence[str]) -> None:
        super().__init__()
        self.network, self.learner, self.paths = network, learner, tuple(paths)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Run the encoder of queries."""
        outputs = run(self.learner, self.network, nested(dict(zip(self.paths, tensors, strict=True))))
        return outputs.embedding, outputs.logits


def nested(tensors: Mapping[str, Tensor]) -> Batch:
    """Return the batch whose tensors `leaves` named."""
    if set(tensors) == {ONLY}:
        return tensors[ONLY]
    batch: dict[str, Any] = {}
    for path, tensor in tensors.items():
        *folders, name = path.split(".")
        place = batch
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = tensor
    return batch


def named(batch: Batch) -> dict[str, Tensor]:
    """Return the tensors of a batch by the names that a file's inputs have."""
    return {path or ONLY: tensor for path, tensor in leaves(batch)}


def write(path: Path, module: Inference, batch: Batch, *, form: Format, provenance: Mapping[str, Any]) -> None:
    """Write a file; any number of samples may be run with it, and texts of any length.

    Args:
        path: Where.
        module: What is written.
        batch: At least two samples.
        form: onnx, with ONNX's own operators; pt2, a program of torch.
        provenance: JSON values about its origin that the file holds.

    Raises:
        SpecError: The network does what the exporter does not know.
    """
    tensors = named(batch)
    arguments = tuple(tensors.values())
    shapes = (tuple(_dynamic(tensor) for tensor in arguments),)  # of the variadic arguments
    with _translated(form), torch.no_grad():
        program = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes)
        if form == "pt2":
            torch.export.save(program, path, extra_files={PROVENANCE: json.dumps(provenance, sort_keys=True)})
            return
        onnx = package("onnx")
        package("onnxscript")
        exported = torch.onnx.export(
            program, input_names=list(tensors), output_names=list(NAMES), dynamo=True, verbose=False
        )
        assert exported is not None
        model = exported.model_proto
        for key, value in provenance.items():
            model.metadata_props.add(
                key=f"graceful.{key}", value=value if isinstance(value, str) else json.dumps(value)
            )
        onnx.save(model, str(path))


def _dynamic(tensor: Tensor) -> dict[int, Any]:
    """Return the axes that may be of any length: samples, and the tokens of texts."""
    axes = [0] if tensor.is_floating_point() or tensor.ndim < 2 else [0, 1]
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


@contextmanager
def _translated(form: Format) -> Iterator[None]:
    """Turn what an exporter raises into one line, and keep its talk about packages that are missing quiet."""
    talk = logging.getLogger("torch.onnx")
    level = talk.level
    talk.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SpecError:
        raise
    except CODE_FAULTS as e:
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        remedy = "try --format pt2, or write that part of the network with other operations"
        raise SpecError(f"export --format {form}: the exporter of torch cannot write this network ({reason}); {remedy}"
                        ) from e  # fmt: skip
    finally:
        talk.setLevel(level)


def quantise(source: Path, target: Path, batches: Sequence[Batch]) -> None:
    """Write an ONNX file with weights, and for inputs of numbers also activations, of 8 bits.

    Args:
        source: The source of floating-point numbers.
        target: Where.
        batches: Training samples from which the ranges of activations are read; texts need none.
    """
    quantization = package("onnxruntime.quantization")
    talk = logging.getLogger()
    level = talk.level
    talk.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        inputs = [{name: tensor.numpy() for name, tensor in named(batch).items()} for batch in batches]
        if all(tensor.is_floating_point() for tensor in named(batches[0]).values()):
            quantization.quantize_static(
                str(source),
                str(target),
                _reader(quantization.CalibrationDataReader, inputs),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            quantization.quantize_dynamic(str(source), str(target), weight_type=quantization.QuantType.QInt8)
    finally:
        talk.setLevel(level)


def _reader(base: Any, inputs: Sequence[Mapping[str, Any]]) -> Any:
    remaining = iter(inputs)

    class Reader(base):  # type: ignore[misc]
        """Batches one after another, as onnxruntime asks for them."""

        def get_next(self) -> Any:
            """Return the next one; None after the last."""
            return next(remaining, None)

    return Reader()


def opened(path: Path, form: Format) -> tuple[Runner, dict[str, Any]]:
    """Open a file on one core.

    Returns:
        What runs it: arrays by the names of its inputs -> embedding and logits; and the values about its origin.
    """
    if form == "pt2":
        extra = {PROVENANCE: ""}
        module = torch.export.load(path, extra_files=extra).module()

        def run_program(arrays: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            with torch.no_grad():
                return [tensor.numpy() for tensor in module(*map(torch.from_numpy, arrays.values()))]

        return run_program, json.loads(extra[PROVENANCE])
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    said = {key.removeprefix("graceful."): value for key, value in metadata.items() if key.startswith("graceful.")}
    known = {item.name for item in session.get_inputs()}

    def run_session(arrays: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        used = {name: values for name, values in arrays.items() if name in known}
        return [np.asarray(values) for values in session.run(list(NAMES), used)]

    return run_session, said


class FileLearner:
    """A version's learner whose query encoder is a file; another gallery encoder stays the version's own."""

    def __init__(self, learner: Learner, runner: Runner) -> None:
        self.encoders, self._learner, self._runner = learner.encoders, learner, runner

    def collate(self, items: Any, views: Any) -> Batch:
        """Implement `Learner.collate`."""
        return self._learner.collate(items, views)

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Run the file."""
        if encoder != encoder_for(self._learner, "query"):
            return self._learner.forward(network, batch, encoder=encoder)
        arrays = {name: tensor.numpy() for name, tensor in named(batch).items()}
        embedding, logits = (torch.from_numpy(np.array(values)) for values in self._runner(arrays))
        return Outputs(embedding, logits)

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Implement `Learner.task_loss`."""
        return self._learner.task_loss(outputs, batch, labels)
