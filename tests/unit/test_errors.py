"""Errors cross process boundaries and end as exit codes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from graceful import errors
from graceful.errors import GracefulError


def every_class(root: type[GracefulError] = GracefulError) -> list[type[GracefulError]]:
    below = [found for child in root.__subclasses__() for found in every_class(child)]
    return [root, *below]


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_message_and_facts(kind: type[GracefulError]) -> None:
    sent = kind("step 7: loss is nan; lower train.optimizer.lr", {"step": 7})
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301  # our own bytes
    assert type(received) is kind
    assert str(received) == sent.message
    assert received.facts == {"step": 7}
    assert received.exit_code == kind.exit_code


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.SpecError, 2),
        (errors.DataError, 2),
        (errors.InfrastructureError, 4),
        (errors.RegistryError, 4),
        (errors.StorageError, 4),
        (errors.IntegrityError, 4),
        (errors.TrainingError, 5),
        (errors.NonFiniteError, 5),
        (errors.CollapsedError, 5),
    ],
)
def test_exit_codes_are_stable(kind: type[GracefulError], code: int) -> None:
    assert kind.exit_code == code


def test_exit_codes_are_numbers_in_one_module() -> None:
    assert errors.EXIT_CODES == (0, 1, 2, 3, 4, 5)
    assert (errors.EXIT_HELD, errors.EXIT_INTERRUPTED, errors.EXIT_PIPE_CLOSED) == (3, 130, 141)
    defined = re.compile(r"\bEXIT_\w+ = \d|\bexit_code ?= ?[1-9]|return (?:130|141)\b")
    package = Path(errors.__file__).parent
    modules = [path for path in package.rglob("*.py") if defined.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in modules] == ["errors.py"]


def test_the_tree_in_the_docstring_names_every_class() -> None:
    missing = [kind.__name__ for kind in every_class() if kind.__name__ not in (errors.__doc__ or "")]
    assert not missing


def test_facts_are_not_shared_with_the_caller() -> None:
    facts: dict[str, object] = {"step": 1}
    error = GracefulError("x", facts)
    facts["step"] = 2
    assert error.facts == {"step": 1}
