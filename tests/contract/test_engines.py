"""What every Engine must do, judged on two gloo ranks; one reference for all: plain torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graceful import spec
from graceful.errors import SpecError
from graceful.spec.deepspeed import deepspeed_config
from graceful.training.engine import build
from tests.support import training as support

Ranks = list[dict[str, dict[str, Any]]]
engines = pytest.mark.parametrize("kind", list(support.ENGINES))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return support.run_distributed(support.all_experiments, 2, str(tmp_path_factory.mktemp("engines")))


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray], *, rtol: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=rtol, atol=1e-7, err_msg=name)


@engines
def test_engines_take_the_same_steps_as_plain_torch(ranks: Ranks, kind: str) -> None:
    np.testing.assert_allclose(ranks[0][kind]["losses"], ranks[0]["torch"]["losses"], rtol=1e-6)
    np.testing.assert_allclose(ranks[0][kind]["norms"], ranks[0]["torch"]["norms"], rtol=1e-5)
    np.testing.assert_allclose(ranks[0][kind]["adamw_losses"], ranks[0]["torch"]["adamw_losses"], rtol=1e-5)
    same(ranks[0][kind]["weights"], ranks[0]["torch"]["weights"], rtol=1e-4)


def test_two_ranks_take_the_same_steps_as_one(ranks: Ranks) -> None:
    alone = support.Trained(support.section("torch")).run(range(support.STEPS))
    np.testing.assert_allclose(ranks[0]["torch"]["losses"], alone.losses, rtol=1e-5)
    same(ranks[0]["torch"]["weights"], alone.weights(), rtol=1e-4)


@engines
def test_a_loaded_engine_continues_bit_for_bit(ranks: Ranks, kind: str) -> None:
    found = ranks[0][kind]
    assert found["resumed_losses"] == found["losses"][3:]
    for name, value in found["weights"].items():
        np.testing.assert_array_equal(found["resumed_weights"][name], value, err_msg=name)


@engines
def test_weights_that_a_version_only_names_are_not_exported_and_runs_resume(ranks: Ranks, kind: str) -> None:
    found = ranks[0][kind]["adapted"]
    assert sorted(found["weights"]) == ["body.2.bias", "body.2.weight", "head.bias", "head.weight", "scale"]
    assert found["resumed"] == found["losses"][3:]
    for name, value in found["weights"].items():
        np.testing.assert_array_equal(found["again"][name], value, err_msg=name)


@engines
def test_rates_by_depth_are_those_of_plain_torch_and_resume(ranks: Ranks, kind: str) -> None:
    found, plain = ranks[0][kind]["rates"], ranks[0]["torch"]["rates"]
    assert plain["losses"] != ranks[0]["torch"]["adamw_losses"]
    np.testing.assert_allclose(found["losses"], plain["losses"], rtol=1e-5)
    same(found["weights"], plain["weights"], rtol=1e-4)
    assert found["resumed"] == found["losses"][3:]
    same(found["again"], found["weights"], rtol=0.0)


@engines
def test_a_checkpoint_that_holds_code_is_refused_and_the_code_does_not_run(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        assert len(rank[kind]["refusals"]) == (2 if kind.startswith("zero") and kind != "zero0" else 1)
        for name, (message, ran) in rank[kind]["refusals"].items():
            assert re.search(rf"{name} holds code \(posix\.system\), which is not run; delete", message)
            assert not ran, name


def test_the_loss_scaler_of_fp16_is_read_too(ranks: Ranks) -> None:
    assert ranks[0]["fp16"]["loaded"] == ranks[0]["fp16"]["saved"]


@engines
def test_a_checkpoint_holds_no_program(ranks: Ranks, kind: str) -> None:
    assert [name for name in ranks[0][kind]["files"] if not name.endswith(".pt")] == []


@engines
def test_two_slices_equal_one_batch(ranks: Ranks, kind: str) -> None:
    found = ranks[0][kind]
    np.testing.assert_allclose(found["sliced_losses"], found["losses"], rtol=1e-5)
    same(found["sliced_weights"], found["weights"], rtol=1e-4)


@engines
def test_clipping_bounds_the_step(ranks: Ranks, kind: str) -> None:
    found = ranks[0][kind]
    assert found["clipped_norm"] > 0.01
    assert found["clipped_move"] == pytest.approx(0.5 * 0.01, rel=1e-3)


@engines
def test_only_rank_0_exports_and_what_it_exports_fits_the_network(ranks: Ranks, kind: str) -> None:
    assert ranks[1][kind]["weights"] == {}
    state = {name: torch.from_numpy(value) for name, value in ranks[0][kind]["weights"].items()}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    support.TinyNet().load_state_dict(state, strict=True)


@engines
def test_both_ranks_agree_on_loss_and_norm(ranks: Ranks, kind: str) -> None:
    assert ranks[0][kind]["losses"] == ranks[1][kind]["losses"]
    np.testing.assert_allclose(ranks[0][kind]["norms"], ranks[1][kind]["norms"], rtol=1e-6)


@engines
def test_evaluation_builds_no_graph(ranks: Ranks, kind: str) -> None:
    assert ranks[0][kind]["eval_requires_grad"] is False


@engines
def test_a_gradient_that_is_not_finite_is_an_error(ranks: Ranks, kind: str) -> None:
    assert "must be finite" in ranks[0][kind]["not_finite"]


@engines
def test_bf16_stays_within_one_percent_of_fp32_and_leaves_no_trace(ranks: Ranks, kind: str) -> None:
    found = ranks[0][kind]
    np.testing.assert_allclose(found["bf16_losses"], found["losses"], rtol=1e-2)
    assert found["bf16_losses"] != found["losses"]
    assert found["after_bf16_losses"] == found["losses"]


@engines
def test_shared_weights_are_exported_under_every_name(ranks: Ranks, kind: str) -> None:
    assert ranks[0][kind]["tied"] == {name: tensor.shape for name, tensor in support.TiedNet().state_dict().items()}


@engines
def test_parameters_that_no_loss_reaches_are_named_where_ranks_would_wait_for_them(ranks: Ranks, kind: str) -> None:
    for found in (one[kind] for one in ranks):
        if kind != "torch":
            assert len(found["spare"]) == support.STEPS
            continue
        assert found["spare"].startswith("task: the loss does not reach spare.weight, spare.bias of the network")
        assert "train.engine.find_unused_parameters: true" in found["spare"]
        assert len(found["tolerated_spare"]) == support.STEPS


def test_ranks_write_different_files(ranks: Ranks) -> None:
    assert not set(ranks[0]["zero2"]["files"]) & set(ranks[1]["zero2"]["files"])
    assert ranks[1]["torch"]["files"] == []


def test_a_network_that_is_built_in_shards_is_the_one_that_is_built_whole(ranks: Ranks) -> None:
    for whole, sharded in ((one["zero3"], one["sharded"]) for one in ranks):
        assert sharded["rows"] < 0.6 * sum(value.size for value in ranks[0]["zero3"]["weights"].values())
        assert sharded["losses"] == whole["losses"]
        for name, value in whole["weights"].items():
            np.testing.assert_array_equal(sharded["weights"][name], value, err_msg=name)
    assert "initialises weights of another one" in ranks[0]["sharded"]["refused"]


def test_fp16_on_cpu_is_refused() -> None:
    with pytest.raises(SpecError, match=r"train\.precision: fp16 needs a GPU"):
        build(support.section("torch", precision="fp16"), support.TinyNet(), device=torch.device("cpu"))


def test_deepspeed_config_matches_the_golden_file(golden: Callable[[str, str], None]) -> None:
    cases = {
        "defaults": (spec.Train(), 2),
        "zero3_bf16_adamw": (
            spec.Train(
                engine=spec.DeepSpeedEngine(zero_stage=3),
                precision="bf16",
                optimizer=spec.AdamW(),
                batch_size=512,
                accumulation=4,
            ),
            8,
        ),
        "zero0_fp16_unclipped": (
            spec.Train(engine=spec.DeepSpeedEngine(zero_stage=0), precision="fp16", clip=0.0, num_workers=1),
            1,
        ),
    }
    found = {name: deepspeed_config(train, world_size=size) for name, (train, size) in cases.items()}
    for name, (train, size) in cases.items():
        per_step = found[name]["train_micro_batch_size_per_gpu"] * found[name]["gradient_accumulation_steps"] * size
        assert per_step == train.batch_size
    golden("deepspeed.json", json.dumps(found, indent=2) + "\n")
