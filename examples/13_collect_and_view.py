"""From rollouts to something to look at and something to train on: collect, list, view, export."""

import asyncio
import json
import tempfile
from pathlib import Path

from envtune_agents import Playground, collect, export_rollouts, playground_tasks, read_rollouts, run_episode
from envtune_agents.testing import ScriptedChatModel, solution_model
from envtune_agents.view import write_report

tasks = playground_tasks(seed=0, n=3)
good, lazy = solution_model(tasks), ScriptedChatModel(script=[])

with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"

    # Two samples of each task. `play` decides who plays: here the second sample is a model that does nothing.
    async def play(model, environment, **options):
        return await run_episode(good if options["sample"] == 0 else lazy, environment, **options)

    done = asyncio.run(collect(tasks, good, Playground, out=run, samples=2, play=play))
    print(done.written, "rollouts,", done.errors, "errors,", done.untrainable, "without tokens to train on")

    # The same call again finds them all.
    print(asyncio.run(collect(tasks, good, Playground, out=run, samples=2, play=play)).skipped, "were there already")

    worst = min(read_rollouts(run), key=lambda rollout: rollout.reward)
    print(worst.rollout_id, "reward", round(worst.reward, 2), "answered:", worst.turns[0].evidence.answered)

    exported = export_rollouts(run, "sft", Path(folder) / "sft.jsonl", where="reward == 1", best_of=1)
    row = json.loads(exported.path.read_text().splitlines()[0])
    print(exported.rows, "of", exported.read, "for SFT:", [message["role"] for message in row["messages"]][:4])

    page = write_report(run, Path(folder) / "report.html")
    print(page.rollouts, "rollouts on one page without network:", "://" not in page.path.read_text())

# Expected output:
# 6 rollouts, 0 errors, 6 without tokens to train on
# 6 were there already
# playground_base_0_0/0/1 reward 0.0 answered: False
# 3 of 6 for SFT: ['user', 'assistant', 'tool', 'tool']
# 6 rollouts on one page without network: True
