"""Kinds of losses: one module each, and those of other packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import graceful
from graceful.losses import registry
from graceful.losses.base import Loss
from tests.support.other_package import install, search_path

OTHER_PACKAGE = '''
from typing import ClassVar, Literal

from graceful.losses.base import Loss, Merge, PerSample
from graceful.losses.search import Span


class SignAgreement(Loss):
    """Penalise logits whose sign differs from the old model's."""

    kind: Literal["sign_agreement"] = "sign_agreement"
    weight: float = 2.0
    slack: float = 0.25

    search_range: ClassVar = (1.0, 4.0)

    @property
    def reads(self):
        return frozenset({"logits"})

    def compare(self, pair, constants):
        distance = (self.slack - pair.new_logits * pair.old_logits.sign()).clamp(min=0.0).mean(-1)
        return PerSample(distance, pair.participates)

    @classmethod
    def search_options(cls, written, space):
        return {"slack": Span(low=0.0, high=1.0)}

    def search_values(self):
        return {"slack": self.slack}

    @classmethod
    def at(cls, point, options):
        return cls(**{**options, "slack": float(point["slack"])})
'''

OTHER_PACKAGE += """

class Unfit(SignAgreement):
    pass


class FreeText(Loss):
    kind: str = "free_text"


class Namesake(SignAgreement):
    kind: Literal["namesake"] = "namesake"
    search_name: ClassVar = "distillation"


class Margin(SignAgreement):
    kind: Literal["margin_again"] = "margin_again"

    @classmethod
    def search_options(cls, written, space):
        return {"margin": Span(low=2.0, high=5.0)}


class Empty(Loss):
    kind: Literal["empty"] = "empty"


class HalfMerged(SignAgreement):
    kind: Literal["half_merged"] = "half_merged"

    @property
    def merge(self):
        return Merge(form="lm")


class Fixed(Loss):
    kind: Literal["fixed"] = "fixed"

    def compare(self, pair, constants):
        return PerSample(pair.new_logits.sum(-1), pair.participates)

    compares_outputs: ClassVar = True
    search_range: ClassVar = None


class Bare(Loss):
    kind: Literal["bare"] = "bare"

    @property
    def reads(self):
        return frozenset({"logits"})

    def compare(self, pair, constants):
        return pair.new_logits
"""

ENTRY_POINTS = """
[graceful.losses]
sign_agreement = other_package.losses:SignAgreement
focal_distillation = other_package.losses:SignAgreement
misnamed = other_package.losses:SignAgreement
broken = other_package.missing:Loss
no_loss = other_package.losses:Span
raises = other_package.raises:Loss
unannotated = other_package.unannotated:Unannotated
free_text = other_package.losses:FreeText
namesake = other_package.losses:Namesake
margin_again = other_package.losses:Margin
fixed = other_package.losses:Fixed
empty = other_package.losses:Empty
half_merged = other_package.losses:HalfMerged
bare = other_package.losses:Bare
"""


@pytest.fixture
def other_package(tmp_path: Path) -> Path:
    """A folder that holds an installed package with entry points, one good and four bad ones."""
    modules = {
        "losses": OTHER_PACKAGE,
        "raises": "raise RuntimeError('needs another driver')",
        "unannotated": "from typing import Literal\nfrom graceful.losses.base import Loss\n"
        "class Unannotated(Loss):\n    kind: Literal['unannotated'] = 'unannotated'\n    slack = 0.25\n",
    }
    return install(tmp_path / "site", "other_package", modules, ENTRY_POINTS)


def run(site: Path, program: str) -> subprocess.CompletedProcess[str]:
    text = f"import sys; sys.path.insert(0, {str(site)!r})\n" + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=120)


def test_own_losses_are_the_modules_of_the_package_in_a_fixed_order() -> None:
    files = {path.stem for path in Path(graceful.__file__).parent.glob("losses/*.py")}
    assert set(registry.kinds()) == files - {"__init__", "base", "registry", "search"}
    assert list(registry.kinds()) == sorted(registry.kinds(), key=lambda kind: registry.kinds()[kind].order)


@pytest.mark.parametrize("kind", registry.kinds())
def test_a_kind_is_named_in_its_own_module_only(kind: str) -> None:
    """So that adding a loss touches one file; `influence` is also an English word, so words in prose do not count."""
    names = {kind, registry.kinds()[kind].__name__}
    package = Path(graceful.__file__).parent
    for path in package.rglob("*.py"):
        if path == package / "losses" / f"{kind}.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if f'"{name}"' in text or f"import {name}" in text], path
        assert f"losses.{kind}" not in text, path


def test_every_kind_says_what_it_reads_and_how_it_is_searched() -> None:
    names = [loss.weight_name() for loss in registry.searched()]
    assert len(names) == len(set(names))
    assert all(loss().reads for loss in registry.kinds().values())


def test_a_loss_of_another_package_is_found_trained_with_and_searched(other_package: Path) -> None:
    done = run(
        other_package,
        """
        import json, torch
        from graceful import spec
        from graceful.chain import OldOutputs
        from graceful.losses.ops.pair import OldVersion
        from graceful.models.base import Outputs
        from graceful.programs.tuning import space
        from graceful.training.objective import Objective

        document = {"model": "m", "name": "v2", "task": {"kind": "digits"}, "compatibility": {"losses": [
            {"kind": "sign_agreement", "slack": 0.5}]}, "tune": {"space": {"sign_agreement": [1.0, 3.0]}}}
        wanted = spec.parse(document)
        version = OldVersion(name="v1", classes=("a", "b"), embedding_size=2)
        old = OldOutputs(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2), torch.tensor([True]))
        objective = Objective(wanted.compatibility, ("a", "b"), [version])
        value = objective(Outputs(torch.zeros(1, 2), torch.tensor([[-1.0, 2.0]])), torch.tensor([0]), [old])
        parameters = {one.name: str(one.domain) for one in space.parameters(wanted)}
        point = space.known_points(wanted, space.parameters(wanted))[0]
        at = space.compatibility(wanted, {**point, "slack": 0.75, "sign_agreement": 1.5})
        found = {"part": float(value.parts["sign_agreement/v1"]), "parameters": parameters,
                 "losses": [loss.model_dump() for loss in at.losses]}
        print(json.dumps(found))
        """,
    )
    found = json.loads(done.stdout or done.stderr)
    assert found["part"] == pytest.approx((1.5 + 2.5) / 2)
    assert found["parameters"]["sign_agreement"] == "[1, 3] log"
    assert found["parameters"]["slack"] == "[0, 1]"
    assert {"kind": "sign_agreement", "weight": 1.5, "slack": 0.75} in found["losses"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("misnamed", "other-package offers the loss misnamed as other_package.losses:SignAgreement, whose kind is"),
        ("broken", "which cannot be imported (ModuleNotFoundError"),
        ("no_loss", "which is not a class derived from graceful.losses.base.Loss"),
        ("raises", "which cannot be imported (RuntimeError: needs another driver)"),
        ("unannotated", "which cannot be imported (PydanticUserError: "),
        ("free_text", 'write kind: Literal["free_text"] = "free_text"'),
        ("namesake", "whose search has a parameter 'distillation', as focal_distillation has"),
        ("margin_again", "whose search has a parameter 'margin', as logit_displacement has"),
        ("empty", "which has neither compare nor emphasis; define one of them"),
        ("half_merged", "which merges but has no compare_merged; define it"),
        ("fixed", "which compares outputs, so a search must vary its weight; give it a search_range"),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_with_its_package(other_package: Path, kind: str, reason: str) -> None:
    done = run(
        other_package,
        f"""
        from graceful import spec
        from graceful.errors import SpecError
        try:
            spec.parse({{"model": "m", "name": "v", "task": {{"kind": "digits"}},
                        "compatibility": {{"losses": [{{"kind": "{kind}"}}]}}}})
        except SpecError as error:
            print(error)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert "compatibility.losses.0.kind" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_kind_that_is_taken_stays_with_graceful(other_package: Path) -> None:
    done = run(
        other_package,
        """
        from graceful.losses import registry
        print(registry.kinds()["focal_distillation"].__module__, "|", registry.unavailable()["focal_distillation"])
        """,
    )
    own, _, reason = done.stdout.partition(" | ")
    assert own == "graceful.losses.focal_distillation"
    assert "which is taken" in reason


def test_a_loss_without_a_value_says_what_it_lacks() -> None:
    with pytest.raises(NotImplementedError, match="override compare"):
        Loss(kind="nothing").compare(None, ())  # type: ignore[arg-type]


def test_a_loss_of_another_package_that_fails_is_named(other_package: Path) -> None:
    done = run(
        other_package,
        """
        import torch
        from graceful import spec
        from graceful.chain import OldOutputs
        from graceful.errors import SpecError
        from graceful.losses.ops.pair import OldVersion
        from graceful.models.base import Outputs
        from graceful.training.objective import Objective

        document = {"model": "m", "name": "v2", "task": {"kind": "digits"},
                    "compatibility": {"losses": [{"kind": "bare"}]}}
        version = OldVersion(name="v1", classes=("a", "b"), embedding_size=2)
        objective = Objective(spec.parse(document).compatibility, ("a", "b"), [version])
        old = OldOutputs(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
        try:
            objective(Outputs(torch.zeros(3, 2), torch.zeros(3, 2)), torch.tensor([0, 1, 0]), [old])
        except SpecError as error:
            print(error)
        """,
    )
    assert done.stdout.startswith("compatibility.losses: bare of other_package.losses fails against v1"), done.stderr


def test_every_command_that_reads_specs_lives_with_packages_that_fail(other_package: Path) -> None:
    command = [sys.executable, "-m", "graceful.cli", "schema", "compatibility.losses"]
    environment = {**os.environ, "PYTHONPATH": search_path(other_package)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert "sign_agreement" in done.stdout
    assert "bare" in done.stdout
