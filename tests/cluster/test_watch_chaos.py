"""A few life-cycles in each weather; benchmarks/watch_chaos.py runs many."""

from __future__ import annotations

import pytest

from graceful.launch.kubernetes.kube import Kube
from tests.support.apiserver_proxy import Fault, Weather
from tests.support.watch_chaos import run_life_cycles

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.value)
def test_followers_end_in_the_right_state_in_any_weather(fault: Fault, kube: Kube) -> None:
    weather = Weather(faults=(fault,), chance=0.2, seed=7)
    row = run_life_cycles(kube, weather, count=8, prefix="w")
    assert row["faults_met"] > 0
    assert (row["hangs"], row["duplicates"], row["wrong_states"], row["errors"]) == (0, 0, 0, [])
