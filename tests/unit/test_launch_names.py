"""Names of what we create: valid for Kubernetes, one per run id; and quantities as Kubernetes writes them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.launch import names, resources

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
PART = st.text(alphabet="am019-", min_size=1, max_size=60).map(lambda text: text.strip("-") or "0")
RUN_ID = st.tuples(PART, PART).map("-".join)


@settings(deadline=None)
@given(RUN_ID)
def test_every_run_id_has_a_valid_job_name(run_id: str) -> None:
    name = names.job_name(run_id)
    assert DNS_1035.fullmatch(name)
    assert len(name) <= 47


@settings(deadline=None)
@given(RUN_ID, RUN_ID)
def test_two_run_ids_never_share_a_job(one: str, other: str) -> None:
    assert (names.job_name(one) == names.job_name(other)) == (one == other)


@settings(deadline=None)
@given(RUN_ID)
def test_an_altered_name_is_never_another_runs_own_name(run_id: str) -> None:
    name = names.job_name(run_id)
    assert name == run_id or names.job_name(name) == name
    assert name == run_id or re.search(r"-[0-9a-f]{8}$", name)


@pytest.mark.parametrize(
    ("run_id", "name"),
    [
        ("glyphs-v2", "glyphs-v2"),
        ("2024-v1", "r-2024-v1-"),
        ("m" * 45 + "-v1", "m" * 38 + "-"),
        ("a" * 45 + "-1", "a" * 45 + "-1"),
    ],
)
def test_the_run_id_is_the_name_where_kubernetes_allows_it(run_id: str, name: str) -> None:
    assert names.job_name(run_id).startswith(name)
    assert (names.job_name(run_id) == run_id) == names.is_job_name(run_id)


@settings(deadline=None)
@given(st.text(alphabet="abcXYZ019-_.", max_size=130))
def test_label_values_are_valid_and_keep_what_is(text: str) -> None:
    value = names.label_value(text)
    assert LABEL.fullmatch(value)
    assert len(value) <= 63
    assert value == text or not (LABEL.fullmatch(text) and len(text) <= 63)


def test_a_documents_name_follows_its_content_and_is_a_valid_object_name() -> None:
    job = names.job_name("m" * 60 + "-v1")
    assert names.document_name(job, "a") != names.document_name(job, "b")
    assert names.document_name(job, "a") == names.document_name(job, "a")
    assert len(names.document_name(job, "a")) <= 63


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2), (4, 4), ("4Gi", 4 * 1024**3), ("64M", 64e6), ("1.5Gi", 1.5 * 1024**3), ("0", 0)],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str | int, number: float) -> None:
    assert resources.quantity(text) == number


@pytest.mark.parametrize("text", ["", "4 GB", "4GB", "-1", "two", "4gi", "1e3x"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a quantity such as 2, 500m or 4Gi"):
        resources.quantity(text)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**50))
def test_written_memory_is_read_back_exactly(memory: int) -> None:
    assert int(resources.quantity(resources.written(memory))) == memory


@settings(deadline=None)
@given(st.integers(min_value=1, max_value=128_000))
def test_written_cores_are_read_back(thousandths: int) -> None:
    assert resources.quantity(resources.cores(thousandths / 1000)) == pytest.approx(thousandths / 1000)
