"""Export a registered version, measure the file instead of the network, and gate it. Runs in the driver."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graceful import gate, tasks
from graceful.chain import Predecessor
from graceful.errors import SpecError
from graceful.lineage import LineageRecord, Store
from graceful.models import cost
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.exporting import files
from graceful.programs.outputs.galleries import FleetVersions
from graceful.programs.runs import ancestry, version_spec
from graceful.programs.runs.run import Run
from graceful.report import Report
from graceful.storage import sha256_file, write_json
from graceful.tasks.base import Samples, Task

CALIBRATION, BATCH = 256, 32
"""Training samples from which ranges of activations are read, and how many are run at a time."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        version: MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS.
        form: onnx or pt2.
        int8: Quantise it.
        out: Where; None: `<model>-<name>.<format>` here.
        spec: Whose task and gate judge the file; None: the recorded one of the version.
    """

    version: str
    form: files.Format = "onnx"
    int8: bool = False
    out: str | None = None
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file and its evaluation; `document` is written beside it."""

    path: Path
    report: Report
    verdict: gate.Verdict
    document: dict[str, Any]


def export(wanted: Wanted, home: Path) -> Exported:
    """Write a version as a file, run the file on the test data and judge it by the constraints of the version's spec.

    Raises:
        SpecError: There is no such version, its network cannot be exported, or its task is code and no spec is given.
        IntegrityError, RegistryError: As `Store.fetch`.
    """
    if wanted.int8 and wanted.form != "onnx":
        raise SpecError(f"--int8 is for --format onnx, got {wanted.form}; leave one of them out")
    store = Store(None, home)
    record = store.record(ancestry.find(store, wanted.version).model_id)
    section = version_spec.own(store, record, wanted.spec, what=f"export {wanted.version}")
    run = Run.of(section, home=home)
    task = tasks.build(section.task)
    version = run.version(store.fetch(record)).whole()
    suffix = ".int8.onnx" if wanted.int8 else f".{wanted.form}"
    path = Path(wanted.out or f"{record.refresh_id}{suffix}")
    provenance = _write(path, version, task, record, wanted)
    runner, said = files.opened(path, wanted.form)
    if said.get("version_digest") != provenance["version_digest"]:
        raise SpecError(f"{path}: the file does not say which version it is; export it again")
    inner: Any = files.FileLearner(version.learner, runner)
    report, verdict = _judged(run, store, record, task, replace(version, learner=inner, digest=sha256_file(path)))
    latency = _latency(runner, version, task.samples("test"))
    document = {
        **provenance,
        "file": str(path),
        "file_sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "p50_ms": latency.p50_ms,
        "p95_ms": latency.p95_ms,
        "outcome": str(verdict.outcome),
        "reasons": [finding.reason for finding in verdict.findings],
        "metrics": _values(report),
        "metrics_before": {name: record.metrics[name] for name in _values(report) if name in record.metrics},
    }
    write_json(path.with_name(path.name + ".json"), document)
    store.attach(record, [path, path.with_name(path.name + ".json")], folder="exports")
    return Exported(path=path, report=report, verdict=verdict, document=document)


def _write(path: Path, version: Predecessor, task: Task, record: LineageRecord, wanted: Wanted) -> dict[str, Any]:
    """Write the file and return the values about its origin."""
    train = task.samples("train")
    rows = np.arange(min(len(train), CALIBRATION), dtype=np.int64)
    parts = [version.learner.collate(train.read(rows[at : at + BATCH]), None) for at in range(0, len(rows), BATCH)]
    provenance = {
        "model": record.model,
        "name": record.name,
        "model_id": record.model_id,
        "version_digest": version.digest,
        "contract_digest": "" if version.contract is None else version.contract.digest,
        "format": f"{wanted.form}{'-int8' if wanted.int8 else ''}",
        "classes": list(version.classes),
    }
    module = files.Inference(version.network, version.learner, tuple(files.named(parts[0])))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not wanted.int8:
        files.write(path, module, parts[0], form=wanted.form, provenance=provenance)
        return provenance
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "fp32.onnx"
        files.write(plain, module, parts[0], form="onnx", provenance=provenance)
        files.quantise(plain, path, parts)
    return provenance


def _judged(
    run: Run, store: Store, record: LineageRecord, task: Task, version: Predecessor
) -> tuple[Report, gate.Verdict]:
    """Evaluate the file against the version's ancestors and its fleet, and judge it by the spec's constraints."""
    links = ancestry.of_version(store, run.spec, record)
    ancestors = ancestry.fetch(run, links)
    chain = [ancestor.stored.open() for ancestor in ancestors if ancestor.is_ancestor]
    report = evaluate(run.spec, version, chain, task=task, fleet=FleetVersions.of(ancestors)).report
    constraints = [item.constraint() for item in run.spec.gate.constraints]
    return report, gate.judge(report, constraints, family=run.spec.gate.family)


def _latency(runner: files.Runner, version: Predecessor, samples: Samples) -> cost.Latency:
    """Measure the file on one sample and one core."""
    batch = version.learner.collate(samples.read(np.zeros(1, dtype=np.int64)), None)
    arrays = {name: tensor.numpy() for name, tensor in files.named(batch).items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return cost.latency(lambda: runner(arrays))
    finally:
        torch.set_num_threads(threads)


def _values(report: Report) -> dict[str, float]:
    """Return what was measured of the file alone, and of each pair under its partner's name."""
    values = {name: found.value for name, found in report.measurements.items() if found.value is not None}
    for item in report.pairs:
        named = {f"{name}/{item.against}": found.value for name, found in item.measurements.items()}
        values |= {name: value for name, value in named.items() if value is not None}
    return values
