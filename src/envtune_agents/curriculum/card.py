"""The model card of a trained checkpoint: what it is, how it was trained, and the table that was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envtune_agents.curriculum.curriculum import Curriculum
from envtune_agents.curriculum.decide import Move
from envtune_agents.curriculum.settings import LearningSettings
from envtune_agents.types import Rollout

CARD = "README.md"
"""File of the model card, beside the weights."""

_USE = """```python
from envtune_agents import ChatTransformers

model = ChatTransformers(model="{model}").bind_tools(tools)
```"""


@dataclass(frozen=True, slots=True)
class Solved:
    """How many tasks of one category were solved."""

    correct: int
    total: int
    """At least 1."""

    @property
    def share(self) -> float:
        """Accuracy, in [0, 1]."""
        return self.correct / self.total


def solved_by_category(rollouts: Iterable[Rollout]) -> dict[str, Solved]:
    """The verdicts of one rollout for each task, by category; a rollout with an error is not solved."""
    found: dict[str, Solved] = {}
    for rollout in rollouts:
        so_far = found.get(rollout.category, Solved(0, 0))
        found[rollout.category] = Solved(so_far.correct + rollout.solved, so_far.total + 1)
    return found


def write_card(
    folder: Path,
    base: str,
    lora: int,
    curriculum: Curriculum,
    settings: LearningSettings,
    before: Mapping[str, Solved],
    after: Mapping[str, Solved],
    notes: Sequence[str] = (),
    called: str = "",
) -> Path:
    """Writes `README.md` into the folder of the weights.

    `lora` is the rank, 0 for full weights. `before` and `after` say what base and trained model solved of the same
    test tasks, greedily and without hints; `notes` are further paragraphs on the training. `called` is what the weights
    are loaded by, the folder's name unless given; an adapter's folder is a model of its own.
    """
    name = f"{Path(base).stem}-EnvTuning"
    form = f"LoRA adapter, rank {lora}" if lora else "Full weights"
    parts = [
        f"---\nbase_model: {base}\nlibrary_name: transformers\ntags: [environment-tuning, tool-calling, agent]\n---",
        f"# {name}",
        f"{Path(base).stem} trained by Environment Tuning with envtune-agents: staged curriculum, hints in augmented "
        f"stages, progress rewards, no hints in evaluation. {form}; tasks: {', '.join(sorted(after))}.",
        "## Evaluation",
        "Greedy, without hints, on tasks that training did not see. A task is correct when every turn is.",
        _table(before, after),
        "## Use",
        _USE.format(model=called or folder.name),
        "## Training",
        "\n".join(_stage_lines(curriculum)),
        *notes,
        f"GRPO: clip {settings.clip_low}/{settings.clip_high}, dual clip {settings.dual_clip:g}, KL {settings.kl}, "
        f"learning rate {settings.learning_rate:g}, seed {settings.seed}.",
    ]
    path = folder / CARD
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _table(before: Mapping[str, Solved], after: Mapping[str, Solved]) -> str:
    rows = ["| category | correct | total | accuracy | before |", "|---|---|---|---|---|"]
    for category, now in sorted(after.items()):
        rows.append(f"| {category} | {now.correct} | {now.total} | {now.share:.2%} | {before[category].share:.2%} |")
    correct, total = sum(now.correct for now in after.values()), sum(now.total for now in after.values())
    # the mean over categories, unweighted, as BFCL has it
    overall, then = (sum(one.share for one in found.values()) / len(found) for found in (after, before))
    rows.append(f"| **OVERALL** | **{correct}** | **{total}** | **{overall:.2%}** | **{then:.2%}** |")
    return "\n".join(rows)


def _stage_lines(curriculum: Curriculum) -> list[str]:
    over = (Move.ADVANCE, Move.FINISH)
    left = {decision.stage: decision for decision in curriculum.decisions if decision.move in over}
    lines = []
    for number, stage in enumerate(curriculum.stages, 1):
        data = ", ".join(stage.categories) if stage.categories else "all categories"
        hints = f"hint level {stage.hint_level}" if stage.augmented else "no hints"
        end = left.get(stage.name)
        steps = f"{end.step} steps. {' '.join(end.reasons)}" if end else "not finished."
        lines.append(f"{number}. **{stage.name}**: {data}, {hints}, {steps}")
        lines += [f"   - {event}" for event in _restarts(curriculum, stage.name)]
    return lines


def _restarts(curriculum: Curriculum, stage: str) -> list[str]:
    return [
        f"Begun again after step {decision.step}. {' '.join(decision.reasons)}"
        for decision in curriculum.decisions
        if decision.stage == stage and decision.move is Move.RESTART
    ]
