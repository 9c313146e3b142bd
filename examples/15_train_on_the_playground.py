"""Train on the playground: two GRPO steps on a LoRA adapter, with hints, then a look at what the run left behind.

The checkpoint has 100,000 random parameters, so that this ends on any machine; it learns nothing, and the log says so.
With your model, the card's stages and time it is the same call. Needs `pip install -e integrations/trl`.
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path

from envtune_agents import Playground, Stage
from envtune_agents.playground import PLAYGROUND_RULES, generated_tasks
from envtune_agents.progress import RewardMix
from envtune_agents.task_source import TaskSource
from envtune_agents.testing import tiny_qwen
from envtune_trl import TrainSettings, train

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

stage = Stage("help", RewardMix(progress=1.0), hint_level=3, max_steps=2)
settings = TrainSettings(
    lora=4, precision="fp32", prompts=2, samples=2, micro_batch=2, max_tokens=8, max_steps_per_turn=1,
    validation_tasks=2, evaluate_every=2, learning_rate=1e-3,
)  # fmt: skip
source = TaskSource(
    load=lambda split, categories: generated_tasks(0 if split == "train" else 1, 4, "base"),
    environment=Playground,
    rules=lambda: PLAYGROUND_RULES,
)

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder, "run")
    done = train(tiny_qwen(Path(folder, "tiny")), source, out=out, stages=[stage], settings=settings)
    print("finished:", done.finished)
    print("weights:", sorted(file.name for file in done.weights.glob("adapter_*")))
    lines = [json.loads(line) for line in (out / "help" / "metrics.jsonl").read_text().splitlines()]
    print("steps logged:", max(line.get("step", 0) for line in lines))

# Expected output:
# finished: True
# weights: ['adapter_config.json', 'adapter_model.safetensors']
# steps logged: 2
