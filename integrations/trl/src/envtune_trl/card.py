"""The model card of a trained checkpoint: what it is, how it was trained, and the table that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envtune_agents.curriculum import Curriculum, Move
from envtune_agents.types import Rollout
from envtune_trl.settings import TrainSettings

CARD = "README.md"
"""File of the model card."""

_USE_ADAPTER = """```python
from envtune_agents import ChatTransformers

model = ChatTransformers(model="{base}")
model.load_adapter("tuned", "{folder}")
model.bind_tools(tools).invoke("…", model="tuned")
```"""

_USE_MODEL = """```python
from envtune_agents import ChatTransformers

model = ChatTransformers(model="{folder}").bind_tools(tools)
```"""


def write_card(
    folder: Path,
    base: str,
    tasks: str,
    curriculum: Curriculum,
    settings: TrainSettings,
    before: Sequence[Rollout],
    after: Sequence[Rollout],
) -> Path:
    """Writes `README.md` into the folder of the weights.

    `before` and `after` are greedy rollouts of the same test tasks without hints, by the base and by the trained model.
    """
    use = (_USE_ADAPTER if settings.lora else _USE_MODEL).format(base=base, folder=folder.name)
    form = f"LoRA adapter, rank {settings.lora}" if settings.lora else "full weights"
    lines = [
        f"---\nbase_model: {base}\nlibrary_name: transformers\ntags: [environment-tuning, tool-calling, agent]\n---",
        f"# {Path(base).stem}-EnvTuning",
        f"{Path(base).stem} trained by Environment Tuning with envtune-agents: staged curriculum, hints in augmented "
        f"stages, progress rewards, no hints in evaluation. {form.capitalize()}; tasks: {tasks}.",
        "## Evaluation",
        "Greedy, without hints, on tasks that training did not see. A task is correct when every turn is.",
        _table(before, after),
        "## Use",
        use,
        "## Training",
        "\n".join(_stage_lines(curriculum)),
        f"GRPO: clip {settings.clip_low}/{settings.clip_high}, dual clip {settings.dual_clip:g}, KL {settings.kl}, "
        f"learning rate {settings.learning_rate:g}, seed {settings.seed}.",
    ]
    path = folder / CARD
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def _table(before: Sequence[Rollout], after: Sequence[Rollout]) -> str:
    rows = ["| category | correct | total | accuracy | before |", "|---|---|---|---|---|"]
    shares: list[tuple[float, float]] = []
    for category in sorted({rollout.category for rollout in after}):
        now, then = (_solved(rollouts, category) for rollouts in (after, before))
        shares.append((now[0] / now[1], then[0] / max(then[1], 1)))
        rows.append(f"| {category} | {now[0]} | {now[1]} | {shares[-1][0]:.2%} | {shares[-1][1]:.2%} |")
    correct, total = sum(rollout.solved for rollout in after), len(after)
    overall = [sum(share) / len(shares) for share in zip(*shares, strict=True)]  # unweighted, as BFCL has it
    rows.append(f"| **OVERALL** | **{correct}** | **{total}** | **{overall[0]:.2%}** | **{overall[1]:.2%}** |")
    return "\n".join(rows)


def _solved(rollouts: Sequence[Rollout], category: str) -> tuple[int, int]:
    chosen = [rollout for rollout in rollouts if rollout.category == category]
    return sum(rollout.solved for rollout in chosen), len(chosen)


def _stage_lines(curriculum: Curriculum) -> list[str]:
    left = {decision.stage: decision for decision in curriculum.decisions if decision.move is not Move.STAY}
    lines = []
    for number, stage in enumerate(curriculum.stages, 1):
        data = ", ".join(stage.categories) if stage.categories else "all categories"
        hints = f"hint level {stage.hint_level}" if stage.augmented else "no hints"
        end = left.get(stage.name)
        steps = f"{end.step} steps. {' '.join(end.reasons)}" if end else "not finished."
        lines.append(f"{number}. **{stage.name}**: {data}, {hints}, {steps}")
    return lines
