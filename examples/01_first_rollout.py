"""One episode from beginning to end: a task, a model, hints, scores, and the record it leaves."""

import asyncio

from envtune_agents import Playground, playground_tasks, run_episode
from envtune_agents.testing import ScriptedChatModel

# The playground generates small multi-turn tasks: pick something in a stock room, count, ship it.
task = playground_tasks(seed=0, n=1)[0]

# A scripted model stands in for a checkpoint. It looks around, then forgets that rooms are locked.
model = ScriptedChatModel(
    script=[
        '<tool_call>\n{"name": "list_items", "arguments": {"room": "annex"}}\n</tool_call>',
        '<tool_call>\n{"name": "pick_item", "arguments": {"item_id": "ladder", "count": "1"}}\n</tool_call>',
        "I could not pick it.",
    ]
)

rollout = asyncio.run(run_episode(model, Playground(task), hints=3))

for step in rollout.turns[0].steps:
    for outcome in step.outcomes:
        print(outcome.name, "->", outcome.failure.kind if outcome.failure else "ok")
        if outcome.hint:
            print("  hint:", outcome.hint.text)
print("turn scores", [turn.score.value for turn in rollout.turns if turn.score], "reward", rollout.reward)

# Expected output:
# list_items -> ok
# pick_item -> wrong_type
#   hint: 'pick_item' got an argument of the wrong type: count was string "1". count must be of type integer. Give count as 1, without quotes around it.
# turn scores [0.0, 0.0, 0.0] reward 0.0
