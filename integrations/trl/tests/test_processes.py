"""How the work of a step is shared by processes, and which launchers are refused; `long_processes` starts real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import SETTINGS, STAGES

from envtune_agents.errors import CurriculumError
from envtune_trl.processes import ALONE, Processes, joined_processes, speaks


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_a_step_are_the_same_for_any_number_of_processes(processes: int) -> None:
    stage = replace(STAGES[0], prompts=4, samples=6)
    options = replace(SETTINGS, micro_batch=3).grpo_options(stage, Path("x"), 1, processes)
    rows = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] * processes
    assert (rows, options["per_device_train_batch_size"]) == (24, 3)


def test_tasks_that_processes_cannot_share_are_refused() -> None:
    with pytest.raises(CurriculumError, match="plays 2 tasks in a step, which 3 processes cannot share evenly"):
        SETTINGS.grpo_options(replace(STAGES[0], prompts=2), Path("x"), 1, 3)


def test_every_item_has_one_process() -> None:
    parts = [Processes(rank, 3).share(range(8)) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == list(range(8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert ALONE.from_all("x") == ["x"]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "started 4 processes, 2 of them on this machine"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "split the model with FSDP"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, "split the model with DeepSpeed"),
    ],
)
def test_launchers_whose_processes_do_not_hold_the_model_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CurriculumError, match=named):
        joined_processes()


def test_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speaks()
    monkeypatch.setenv("RANK", "1")
    assert not speaks()
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert joined_processes() == ALONE
