"""The subject of the experiment: a small model, taught by a short common warm-up to call tools the clumsy way."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from arms import short
from episodes import Workers, play_all
from learn import Optimizer, backward
from packed import Adapters, Base
from safetensors.torch import load_file, save_file
from shared_prompts import TrainRow
from worker import Job, Played, Subject

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
        lessons = _lessons(workers, tasks, settings["warmup_batch"])
        _teach_adapter(base, adapters, lessons, settings, folder / "lesson.safetensors")
        save_file({name: t.bfloat16().contiguous().cpu() for name, t in adapters.state().items()}, file)
        adapters.load(load_file(file))
    base.merge(adapters)
    return base, subject


def _template() -> str:
    """The library's Qwen template: what its built-in prompt is, for a checkpoint whose own ignores tools."""
    from envtune_agents.testing.tiny import CHAT_TEMPLATE

    return CHAT_TEMPLATE


def _lessons(workers: Workers, tasks: list[Any], size: int) -> list[list[TrainRow]]:
    """What the clumsy script did in each task with hints and without, `size` rows of one set of tools together.

    The declaration of the tools is most of a prompt; as the prompt of all of them it is read once (`shared_prompts`).
    """
    played = [item for level in (3, 0) for item in scripted(workers, "clumsy", tasks, [level])]
    by_tools: dict[tuple[int, ...], list[TrainRow]] = defaultdict(list)
    for row in supervised_rows(played):
        start = row.prompt[0]  # of the system message; the user's begins with it, too
        cut = row.prompt.index(start, 1)
        rest = row.prompt[cut:]
        by_tools[tuple(row.prompt[:cut])].append(
            replace(
                row,
                prompt=row.prompt[:cut],
                completion=rest + row.completion,
                mask=[0] * len(rest) + row.mask,
                logprobs=[0.0] * len(rest) + row.logprobs,
            )
        )
    random = Random(0)
    shuffled = [random.sample(rows, k=len(rows)) for rows in by_tools.values()]
    return [rows[start : start + size] for rows in shuffled for start in range(0, len(rows), size)]


def _teach_adapter(
    base: Base, adapters: Adapters, lessons: list[list[TrainRow]], settings: dict[str, Any], saved: Path
) -> None:
    """Imitation of the lessons, one a step; an interrupted warm-up goes on. The learning rate falls to a tenth."""
    steps, started = settings["warmup_steps"], time.perf_counter()
    optimizer = Optimizer(adapters, settings["warmup_lr"])
    for step in range(_resumed(adapters, optimizer, saved), steps):
        for group in optimizer.adam.param_groups:
            group["lr"] = settings["warmup_lr"] * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / steps)
        epoch, at = divmod(step, len(lessons))
        lesson = lessons[Random(epoch).sample(range(len(lessons)), k=len(lessons))[at]]
        learned = backward(base, adapters, lesson, settings["train_tokens"], kl_coef=0.0)
        optimizer.step()
        print(
            f"warm-up step {step + 1}/{steps}: loss {learned.entropy[0]:.4f}, {learned.tokens} tokens, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
        if (step + 1) % 10 == 0:
            _save(adapters, optimizer, step + 1, saved)


def _save(adapters: Adapters, optimizer: Optimizer, step: int, saved: Path) -> None:
    tensors = {f"adapter.{name}": t.contiguous() for name, t in adapters.state().items()}
    tensors |= {f"adam.{name}": t.contiguous() for name, t in optimizer.state().items()}
    part = saved.with_suffix(".part")
    save_file(tensors | {"step": torch.tensor(step)}, part)
    part.replace(saved)


def _resumed(adapters: Adapters, optimizer: Optimizer, saved: Path) -> int:
    """The step at which an interrupted warm-up goes on."""
    if not saved.exists():
        return 0
    tensors = load_file(saved)
    adapters.load({name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")})
    optimizer.load({name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")})
    return int(tensors["step"])
