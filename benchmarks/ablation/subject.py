"""The subject of the experiment: a small model, taught by a short common warm-up to call tools the clumsy way."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
from episodes import Job, Played, Subject, Workers, play_all
from learn import TrainRow, backward
from packed import Adapters, Base
from safetensors.torch import load_file, save_file

from envtune_agents.playground import generated_tasks

TINY = "tiny"
"""Instead of a checkpoint: a small Qwen3-architecture model with a tokenizer of its own; see `tiny`."""

WARMUP_SEED = 50


class NoDecoder:
    """Where only scripts play, nobody decodes."""

    busy = False

    def step(self) -> list[Any]:
        return []


def scripted(workers: Workers, script: str, tasks: list[Any], levels: list[int]) -> list[Played]:
    """Every task played by a script, four in a row at each hint level in turn: one of every category."""
    jobs = [Job(i, task, levels[i // 4 % len(levels)], 1.0, 96, 12, script, seed=i) for i, task in enumerate(tasks)]
    done = play_all(workers, jobs, NoDecoder(), len(jobs))
    return sorted(done, key=lambda played: played.key)


def supervised_rows(played: list[Played], run: int = 0) -> list[TrainRow]:
    """Rollouts as supervised rows."""
    return [TrainRow(run, *row, advantage=0.0, supervised=True) for item in played for row in item.rows]


def prepare(out: Path, model: str, device: str, settings: dict[str, Any], workers: Workers) -> tuple[Base, Subject]:
    """The warmed-up subject, from `out` when it was made before."""
    folder = out / "subject"
    if model == TINY:
        from tiny import tiny_subject

        return tiny_subject(folder, device, settings, workers)
    return _checkpoint(folder, model, device, settings, workers)


def _checkpoint(
    folder: Path, model: str, device: str, settings: dict[str, Any], workers: Workers
) -> tuple[Base, Subject]:
    from envtune_agents.weights import load_weights

    weights = load_weights(model, "bf16" if device == "cuda" else "fp32", device_map=device)
    base = Base(weights.model)
    subject = Subject(str(folder), weights.end_token_ids, settings["context"])
    if not (folder / "tokenizer.json").exists():
        tokenizer = weights.tokenizer
        tokenizer.chat_template = _template()
        tokenizer.save_pretrained(folder)
    del weights
    adapters = Adapters(base, 1, 16, [0])
    file = folder / "warmup.safetensors"
    if file.exists():
        adapters.load(load_file(file))
    else:
        workers.use(subject)
        tasks = generated_tasks(WARMUP_SEED, settings["warmup_tasks"])
        rows = supervised_rows(scripted(workers, "clumsy", tasks, [3, 0]))
        _teach_adapter(base, adapters, rows, settings)
        save_file({name: t.bfloat16().contiguous().cpu() for name, t in adapters.state().items()}, file)
        adapters.load(load_file(file))
    base.merge(adapters)
    return base, subject


def _template() -> str:
    """The library's Qwen template: what its built-in prompt is, for a checkpoint whose own ignores tools."""
    from envtune_agents.testing.tiny import CHAT_TEMPLATE

    return CHAT_TEMPLATE


def _teach_adapter(base: Base, adapters: Adapters, rows: list[TrainRow], settings: dict[str, Any]) -> None:
    adam = torch.optim.AdamW(adapters.parameters(), lr=settings["warmup_lr"], weight_decay=0.0)
    for step, batch in enumerate(_batches(rows, settings["warmup_epochs"], 32)):
        learned = backward(base, adapters, batch, settings["train_tokens"], kl_coef=0.0)
        torch.nn.utils.clip_grad_norm_(adapters.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        print(f"warm-up step {step}: loss {learned.entropy[0]:.4f}", flush=True)


def _batches(rows: list[TrainRow], epochs: float, size: int) -> list[list[TrainRow]]:
    random, order = Random(0), []
    for _ in range(int(epochs + 0.999)):
        order += random.sample(rows, k=len(rows))
    order = order[: int(epochs * len(rows))]
    return [order[start : start + size] for start in range(0, len(order), size)]
