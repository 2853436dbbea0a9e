"""What `mlflow.pyfunc.load_model("models:/glyphs@champion")` calls to serve a version, without pickle. Serving process.

The folder holds safetensors and JSON; the network is rebuilt by graceful's own code, so the serving environment needs
graceful and, for a task of your own, its Python file. Task code runs only if `GRACEFUL_TRUST_CODE` has its digest,
because anyone who may write to the registry may name any.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.adapters import Adapter
from graceful.chain import Predecessor
from graceful.metrics.predictions import NO_PREDICTION


class Served:
    """A frozen version that answers with class names and probabilities.

    Args:
        version: The version, loaded.
    """

    def __init__(self, version: Predecessor) -> None:
        self.version = version

    def predict(self, items: Any, params: dict[str, Any] | None = None) -> dict[str, NDArray[Any]]:
        """Classify a batch of raw items.

        Args:
            items: What the task reads, e.g. uint8 images [B, H, W].
            params: Unused; part of mlflow's signature.

        Returns:
            `label` [B] class names, empty where it has no answer; `probability` [B, C] fp32 in the order of `classes`
            [C], NaN where it has none.
        """
        logits = self.version(_as_model_input(items)).logits.cpu()
        probability, classes = logits.softmax(dim=1).numpy(), np.asarray(self.version.classes)
        labels = np.where(logits.isnan().any(dim=1).numpy(), NO_PREDICTION, classes[probability.argmax(axis=1)])
        return {"label": labels, "probability": probability, "classes": classes}


def _as_model_input(items: Any) -> Any:
    """Return numbers as an array; texts, pairs and mappings unchanged, for the task's own code."""
    if isinstance(items, Mapping):
        return items
    try:
        array = np.asarray(items)
    except ValueError:  # rows of different lengths
        return items
    return array if not isinstance(items, list) or array.dtype.kind in "biufc" else items


class ServedAdapter:
    """An adapter that maps vectors of one version into the space of another.

    Args:
        adapter: Loaded.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def predict(self, vectors: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Map vectors, [N, a] -> [N, b] of length 1.

        Args:
            vectors: [N, a] by the source's version; where the adapter lies between old and mapped queries, a mapping
                `{"new": [N, a], "old": [N, b]}` of both versions' embeddings.
            params: Unused; part of mlflow's signature.
        """
        if isinstance(vectors, Mapping):
            return self.adapter(np.asarray(vectors["new"]), old=np.asarray(vectors["old"]))
        return self.adapter(np.asarray(vectors))


def _load_pyfunc(path: str) -> Served | ServedAdapter:
    """Load a version for MLflow, whose `MLmodel` names this function; loading verifies the digests of the bundle.

    The checkpoint of a version with adapters comes from where its spec says, from the bucket, or from the registry.

    Raises:
        DataError: The version needs task code whose digest is not in `GRACEFUL_TRUST_CODE`.
    """
    from graceful import adapters
    from graceful.lineage import base_copies
    from graceful.models import bundle, recorded_code

    if adapters.found(Path(path)):
        return ServedAdapter(adapters.load(Path(path)))
    base_copies.bring_served(Path(path))
    return Served(bundle.load(path, trusted=recorded_code.trusted_by_environment()))
