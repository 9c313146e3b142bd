"""Evaluate two models on the same tasks, compare them task by task, and recompute every verdict from the rollouts.

The table is a model card's: correct, total and accuracy for each category, each with its interval. The same with BFCL and
a checkpoint: `envtune evaluate --tasks bfcl --split test --model smollm2 --out runs/smollm2`.
"""

import tempfile
from pathlib import Path

from envtune_agents import Playground, evaluate, playground_tasks
from envtune_agents.evaluate import read_report, verify
from envtune_agents.task_source import TaskSource
from envtune_agents.testing import solution_model

tasks = [task for category in ("base", "miss_func", "miss_param") for task in playground_tasks(1, 8, category)]
source = TaskSource(load=lambda split, categories: tasks, environment=Playground)
careful = solution_model(tasks)


def distracted_reply(messages):
    """What the careful model says, except that news of a tool goes unheard."""
    return "Sorry?" if "new tool" in messages[-1].text else careful.script(messages)


distracted = careful.model_copy(update={"script": distracted_reply, "model_name": "distracted"})

with tempfile.TemporaryDirectory() as runs:
    before = evaluate(careful, source, out=Path(runs, "before"))
    after = evaluate(distracted, source, out=Path(runs, "after"))
    print(after)
    print("score", after.score)
    print("after the change:", after.compare(before))
    print("shown to be worse?", after.worse_than(before))
    print(verify(Path(runs, "after"), source))
    stored = read_report(Path(runs, "before"))
    print(stored.manifest.model.name, stored.score, [entry.ended for entry in stored.entries[:2]])

# Expected output:
# category            correct  total  accuracy  95% interval  turns solved
# base                      8      8   100.00%   67.6–100.0%        100.0%
# miss_func                 0      8     0.00%     0.0–32.4%         75.0%
# miss_param                8      8   100.00%   67.6–100.0%        100.0%
# OVERALL                  16     24    66.67%    46.7–82.0%         90.9%
# mean of categories                    66.67%
# score 0.667 (16 of 24, 95% interval 0.467-0.820)
# after the change: worse by 33.3 points, 95% interval 16.7–54.2 (24 shared tasks: 0 solved more often here, 8 there; sign test p = 0.0078)
# shown to be worse? yes: difference -0.333 on 24 shared tasks, one-sided 95% upper bound -0.134 < 0.000
# 24 verdicts recomputed: all as reported
# solution 1.000 (24 of 24, 95% interval 0.862-1.000) ['done', 'done']
