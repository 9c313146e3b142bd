"""Training in two processes, as a launcher starts them: `make test-long`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import SETTINGS, STAGES, source

from envtune_agents.playground import generated_tasks
from envtune_agents.progress import RewardMix
from envtune_agents.testing import tiny_qwen
from envtune_agents.types import Rollout
from envtune_trl import Trained, train


class Parity(RewardMix):
    """What a rollout earns is decided by its tokens, so that groups of a model that can do nothing still differ."""

    def __call__(self, rollout: Rollout) -> float:
        return float(rollout.turns[0].steps[0].completion_token_ids[0] % 2)


STEPS = {"one": 3, "two": 2}
GIVEN: dict[str, Any] = {
    "stages": [replace(stage, reward=Parity(progress=1.0), max_steps=STEPS[stage.name]) for stage in STAGES],
    "settings": replace(SETTINGS, evaluate_every=2),
    "adaptive": True,
}
LONG_S = 900
"""Seconds after which a run hangs."""


def run(model: Path, out: Path) -> Trained:
    return train(model, source(), out=out, test=generated_tasks(2, 5), **GIVEN)


def launched(model: Path, out: Path) -> subprocess.Popen[bytes]:
    """The same run in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, __file__, str(model), str(out)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for name in STEPS for line in (out / name / "metrics.jsonl").open()]


def state(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(out: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(out / stage / "adapter" / "adapter_model.safetensors")


def test_two_processes_learn_what_one_does_also_after_a_kill(tmp_path: Path) -> None:
    """Each plays half of the groups; some steps have differing rewards in one process only."""
    model, alone, pair = tiny_qwen(tmp_path / "tiny"), tmp_path / "alone", tmp_path / "pair"
    assert run(model, alone).finished
    process = launched(model, pair)
    while not (pair / "one" / "checkpoint-2").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert launched(model, pair).wait(LONG_S) == 0

    expected, found = metrics(alone), metrics(pair)
    order = [(stage, step + 1) for stage, steps in STEPS.items() for step in range(steps)]
    assert [(record["stage"], record["step"]) for record in found] == order
    assert 0.5 in {record["mixed_groups"] for record in found[:2]}
    for mine, theirs in zip(expected[: STEPS["one"]], found, strict=False):
        for name in ("reward", "mixed_groups", "solved", "calls", "loss", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], abs=1e-3), (mine, theirs)
    for name, weight in weights(alone, "one").items():
        torch.testing.assert_close(weights(pair, "one")[name], weight, rtol=0, atol=2e-4)
    moves = [[one["move"] for one in state(out / "curriculum.json")["decisions"]] for out in (alone, pair)]
    assert moves[0] == moves[1]
    played = [[sorted(record["successes"]) for record in records[STEPS["one"] :]] for records in (expected, found)]
    assert played[0] == played[1]  # each knows the success of all tasks, whichever process played them
    assert "| **OVERALL** | **0** | **5** |" in (pair / "two" / "adapter" / "README.md").read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]))
