"""The experiment's published weights: what a reader can check of its table on any machine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from statistics import mean

from envtune_agents.chat_model import ChatTransformers
from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.playground import PLAYGROUND_RULES, Playground
from envtune_agents.rollout import run_directly

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "ablation"))
from arms import test_sets as sets_of  # noqa: E402

WEIGHTS = ROOT / "docs" / "ablation" / "tiny"
TASKS = 16


async def progress(name: str) -> float:
    """Mean turn score of the weights called `name` on the first held-out tasks, played greedily without hints."""
    model = ChatTransformers(model=str(WEIGHTS / name), precision="fp32", temperature=0, max_tokens=32)
    hints = HintEngine(PLAYGROUND_RULES, HintDial(0))
    tasks = sets_of(80)["held_out"][:TASKS]
    rollouts = await asyncio.gather(
        *(run_directly(model, Playground(task), hints=hints, max_steps=7) for task in tasks)
    )
    return mean(rollout.reward or 0.0 for rollout in rollouts)


async def test_training_made_the_agent_better_on_held_out_tasks() -> None:
    before, after = await progress("warmed-up"), await progress("four")
    assert after > before + 0.12, (before, after)
