"""What goes wrong on clusters, done to a real node: one version each, the right champion, a cause for people."""

from __future__ import annotations

import pytest

from tests.support.faults import FAULTS, STRIKES, struck
from tests.support.node import Node

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
CONTROL = ("submitter deleted", "operator restarted", "API server restarted", "S3 down for 30 s")
"""None of these touches the machines that train: one run lives through them all."""


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in CONTROL])
def test_a_fault_leaves_one_version_and_its_cause(node: Node, name: str) -> None:
    ending = FAULTS[name].happen(node)
    assert FAULTS[name].good(ending), ending


def test_a_run_lives_through_the_loss_of_everything_around_it(node: Node) -> None:
    ending = struck(node, *(STRIKES[name] for name in CONTROL))
    for name in CONTROL:
        assert FAULTS[name].good(ending), (name, ending)
