"""Failures that a retry cannot fix are recorded; those that may pass, or that a person repeats, are not."""

import pytest

from graceful import errors
from graceful.environment import RESUMES_VARIABLE
from graceful.programs.runs import failure_record
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.delenv("GRACEFUL_STORAGE", raising=False)
    monkeypatch.delenv(RESUMES_VARIABLE, raising=False)
    return RefreshSpec(model="m", name="v1", home=str(tmp_path), task={"kind": "digits"})


@pytest.mark.parametrize("kind", failure_record.KINDS)
@pytest.mark.parametrize("name", [failure_record.FILE, failure_record.OLD_FILE])
def test_an_error_that_needs_a_person_comes_back_at_once(spec, kind, name):
    failure_record.remember(Run.of(spec), kind("step 3: loss is nan"))
    (Run.of(spec).folder / failure_record.FILE).rename(Run.of(spec).folder / name)
    again = failure_record.recall(Run.of(spec))
    assert type(again) is kind
    assert again.message.startswith("step 3: loss is nan (an earlier attempt said so: ")
    assert again.message.endswith(f"{name})")


@pytest.mark.parametrize("kind", [errors.StorageError, errors.RegistryError, errors.TrainingError])
def test_an_error_that_may_pass_is_tried_again(spec, kind):
    failure_record.remember(Run.of(spec), kind("the server is away"))
    assert failure_record.recall(Run.of(spec)) is None


def test_another_spec_and_a_resumed_run_start_afresh(spec, monkeypatch):
    failure_record.remember(Run.of(spec), errors.DataError("no such file"))
    assert failure_record.recall(Run.of(spec.model_copy(update={"description": "corrected"}))) is not None
    changed = RefreshSpec(model="m", name="v1", home=spec.home, task={"kind": "digits"}, train={"seed": 1})
    assert failure_record.recall(Run.of(changed)) is None
    monkeypatch.setenv(RESUMES_VARIABLE, "1")
    assert failure_record.recall(Run.of(spec)) is None


def test_what_may_pass_and_what_is_old_is_tried_again(spec, monkeypatch):
    failure_record.remember(Run.of(spec), errors.SpecError("already being worked on", {"passing": True}))
    assert failure_record.recall(Run.of(spec)) is None
    failure_record.remember(Run.of(spec), errors.DataError("no such file"))
    now = failure_record.time.time()
    monkeypatch.setattr(failure_record.time, "time", lambda: now + failure_record.VALID_SECONDS)
    assert failure_record.recall(Run.of(spec)) is None


def test_a_damaged_note_is_no_obstacle(spec):
    failure_record.remember(Run.of(spec), errors.DataError("no such file"))
    (Run.of(spec).folder / failure_record.FILE).write_text("{")
    assert failure_record.recall(Run.of(spec)) is None


def test_work_is_done_once_where_somebody_retries_it(spec, tmp_path):
    came = []

    def attempt(*, retried):
        with failure_record.once(Run.of(spec, folder=tmp_path / "search"), retried=retried):
            came.append(retried)
            raise errors.DataError("too few ids")

    for retried in (True, True, False):
        with pytest.raises(errors.DataError, match="too few ids"):
            attempt(retried=retried)
    assert came == [True, False]
