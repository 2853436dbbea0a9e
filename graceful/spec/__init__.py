"""The spec that people write: a YAML file that becomes one typed value; imports no torch. Runs on the client first.

Precedence: defaults <- file <- `--set a.b=c`. A misspelt key is refused at every depth with its path. `None` means
"derive it", and the docstring of the field says how. Each attribute docstring becomes `graceful schema`.

    base           what every section has in common
    tasks          task, network            training   train, optimizer, engine
    compatibility  losses, targets          refresh    gate, evaluate, registry, trust, RefreshSpec
    tune           space, error rate to keep
    loading        load, parse
"""

from __future__ import annotations

from graceful.sections import NAME, Count, Fraction, Positive, Section, Weight
from graceful.spec.compatibility import (
    Adaptive,
    Blend,
    Compatibility,
    Decay,
    Equal,
    Reference,
    Targets,
    Weighting,
)
from graceful.spec.engines import DeepSpeedEngine, Engine, Fsdp2Engine, TorchEngine
from graceful.spec.loading import load, parse
from graceful.spec.networks import Network
from graceful.spec.refresh import Evaluate, Gate, GateConstraint, RefreshSpec, Registry, Trust
from graceful.spec.shards import ShardsTask
from graceful.spec.table import TableTask
from graceful.spec.tasks import DigitsTask, GlyphsTask, ImageFolderTask, NamedLearner, PythonTask, Task
from graceful.spec.training import AdamW, ClassWeights, Optimizer, Sgd, Train
from graceful.spec.tune import Final, Space, Tune

__all__ = [
    "NAME",
    "AdamW",
    "Adaptive",
    "Blend",
    "ClassWeights",
    "Compatibility",
    "Count",
    "Decay",
    "DeepSpeedEngine",
    "DigitsTask",
    "Engine",
    "Equal",
    "Evaluate",
    "Final",
    "Fraction",
    "Fsdp2Engine",
    "Gate",
    "GateConstraint",
    "GlyphsTask",
    "ImageFolderTask",
    "NamedLearner",
    "Network",
    "Optimizer",
    "Positive",
    "PythonTask",
    "Reference",
    "RefreshSpec",
    "Registry",
    "Section",
    "Sgd",
    "ShardsTask",
    "Space",
    "TableTask",
    "Targets",
    "Task",
    "TorchEngine",
    "Train",
    "Trust",
    "Tune",
    "Weight",
    "Weighting",
    "load",
    "parse",
]
