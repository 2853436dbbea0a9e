"""What each training sample contributes to delta, kept beside a version so that its answers can be explained.

At the minimum delta = J'u with u_i = W_i (T_i - f_lin(x_i)) / (N l), so that

    f_lin(x)_c - f(x; w0)_c = sum_i K(x, x_i)_c u_i,      K(x, x_i) = J(x) J(x_i)'

Two files hold u and the ids of the samples. They name training samples, and are as sensitive as those names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor

from graceful.errors import DataError, one_line

TENSORS, NAMES = "contributions.safetensors", "contributions.json"
MOST_BYTES = 64 * 2**20
"""Largest size of u in bytes; a larger u is not kept."""


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Of all training samples of a version.

    Attributes:
        ids: The ids of the samples.
        values: [N, C] float64, u.
    """

    ids: Sequence[str]
    values: Tensor

    def files(self) -> dict[str, bytes]:
        """Return the content of both files by name."""
        tensors: bytes = serialise_tensors({"u": self.values.detach().cpu().contiguous()})
        return {TENSORS: tensors, NAMES: json.dumps({"ids": list(self.ids)}, ensure_ascii=False).encode()}

    @classmethod
    def parse(cls, files: Mapping[str, bytes], *, where: str) -> Contributions:
        """Read both files.

        Raises:
            DataError: Their content does not fit their names.
        """
        try:
            ids, values = json.loads(files[NAMES])["ids"], parse_tensors(files[TENSORS])["u"]
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as e:
            raise DataError(f"{where}: no contributions of samples ({one_line(e)}); fetch the version again") from e
        if not isinstance(ids, list) or values.ndim != 2 or len(ids) != len(values):
            raise DataError(f"{where}: names {len(ids)} samples for {len(values)} rows; fetch the version again")
        return cls(ids=[str(name) for name in ids], values=values)


def too_large(samples: int, classes: int) -> bool:
    """Return whether the contributions of so many samples are not kept."""
    return 8 * samples * classes > MOST_BYTES
