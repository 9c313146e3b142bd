"""The subject of the experiment: a small model, taught by a short common warm-up to call tools the clumsy way."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from arms import short
from episodes import Job, Played, Subject, Workers, play_all
from learn import backward
from packed import Adapters, Base
from safetensors.torch import load_file, save_file
from shared_prompts import TrainRow

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
    adapters = Adapters(base, 1, settings["warmup_rank"], [0])
    file = folder / "warmup.safetensors"
    if file.exists():
        adapters.load(load_file(file))
    else:
        workers.use(subject)
        tasks = short(generated_tasks(WARMUP_SEED, settings["warmup_tasks"]), settings["max_turns"])
        _teach_adapter(base, adapters, _lessons(workers, tasks), settings)
        save_file({name: t.bfloat16().contiguous().cpu() for name, t in adapters.state().items()}, file)
        adapters.load(load_file(file))
    base.merge(adapters)
    return base, subject


def _template() -> str:
    """The library's Qwen template: what its built-in prompt is, for a checkpoint whose own ignores tools."""
    from envtune_agents.testing.tiny import CHAT_TEMPLATE

    return CHAT_TEMPLATE


def _lessons(workers: Workers, tasks: list[Any]) -> list[list[TrainRow]]:
    """For each task, what the clumsy script did with hints and without: two rows with one prompt."""
    with_hints, without = (supervised_rows(scripted(workers, "clumsy", tasks, [level])) for level in (3, 0))
    lessons: dict[tuple[int, ...], list[TrainRow]] = defaultdict(list)
    for row in (*with_hints, *without):
        lessons[tuple(row.prompt)].append(row)
    return list(lessons.values())


def _teach_adapter(base: Base, adapters: Adapters, lessons: list[list[TrainRow]], settings: dict[str, Any]) -> None:
    """Imitation of the lessons; the learning rate rises over ten steps and falls to zero."""
    batches = _batches(lessons, settings["warmup_epochs"], settings["warmup_batch"])
    adam = torch.optim.AdamW(adapters.parameters(), lr=settings["warmup_lr"], weight_decay=0.0)
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        for group in adam.param_groups:
            group["lr"] = settings["warmup_lr"] * min(1.0, (step + 1) / 10) * (1 - step / len(batches))
        learned = backward(base, adapters, batch, settings["train_tokens"], kl_coef=0.0)
        torch.nn.utils.clip_grad_norm_(adapters.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        took = time.perf_counter() - started
        done = f"{step + 1}/{len(batches)}"
        print(f"warm-up step {done}: loss {learned.entropy[0]:.4f}, {learned.tokens} tokens, {took:.0f} s", flush=True)


def _batches(lessons: list[list[TrainRow]], epochs: float, size: int) -> list[list[TrainRow]]:
    """The rows of `size` lessons for each step, in a new order in each epoch."""
    random, order = Random(0), []
    for _ in range(int(epochs + 0.999)):
        order += random.sample(lessons, k=len(lessons))
    order = order[: int(epochs * len(lessons))]
    return [[row for rows in order[start : start + size] for row in rows] for start in range(0, len(order), size)]
