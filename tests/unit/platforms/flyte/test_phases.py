"""The table of phases against the official enum, and what becomes of a phase that isn't in it."""

from __future__ import annotations

import pytest
from flyteidl2.common import phase_pb2

from airflow_invocations.models import InvocationStatus
from airflow_invocations.platforms.flyte.phases import ENDS, PHASES, status_of, word_of

S = InvocationStatus
PREFIX = "ACTION_PHASE_"


def test_the_table_is_the_whole_enum() -> None:
    official = {name.removeprefix(PREFIX): number for name, number in phase_pb2.ActionPhase.items()}
    assert {word: phase.number for word, phase in PHASES.items()} == official


def test_every_phase_is_read_by_name_and_by_number() -> None:
    for word, phase in PHASES.items():
        assert status_of({"phase": f"{PREFIX}{word}"}) is phase.status
        assert status_of({"phase": phase.number}) is phase.status
        assert word_of(f"{PREFIX}{word}") == word_of(phase.number) == word
    # What is 0 is left out in JSON.
    assert (status_of({}), word_of(None)) == (S.Queued, "UNSPECIFIED")


def test_the_ends_are_the_phases_after_which_nothing_comes() -> None:
    assert sorted(map(int, ENDS)) == [
        phase_pb2.ACTION_PHASE_SUCCEEDED,
        phase_pb2.ACTION_PHASE_FAILED,
        phase_pb2.ACTION_PHASE_ABORTED,
        phase_pb2.ACTION_PHASE_TIMED_OUT,
        phase_pb2.ACTION_PHASE_RECOVERED,
    ]


@pytest.mark.parametrize("phase", [77, "ACTION_PHASE_DREAMING"])
def test_a_phase_of_tomorrow_is_an_end_only_if_it_says_so(phase: object) -> None:
    assert status_of({"phase": phase}) is S.Processing
    ended = status_of({"phase": phase, "endTime": "2026-01-31T12:00:00Z"})
    assert ended.is_terminal
    assert not ended.is_known
    assert word_of(phase) == ("unknown phase 77" if phase == 77 else "DREAMING")  # type: ignore[arg-type]
