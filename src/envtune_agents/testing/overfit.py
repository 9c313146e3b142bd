"""A tiny checkpoint taught by heart: real weights, real decoding, and replies one can count on.

Comes in: a tiny checkpoint and lessons, each a prompt's ids and the reply's. Goes out: a checkpoint in another folder
that answers these prompts so when it decodes greedily, and any other as it likes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from envtune_agents.errors import WeightsError, require
from envtune_agents.testing.tiny import INSTALL
from envtune_agents.weights import load_weights

Lesson = tuple[tuple[int, ...], tuple[int, ...]]
_IGNORED = -100
_BATCH_TOKENS = 4096


def overfit(
    checkpoint: str | Path, folder: str | Path, lessons: Iterable[Lesson], *, seed: int = 0, max_epochs: int = 400
) -> Path:
    """A copy of `checkpoint` in `folder` that has learned `lessons`: (prompt ids, completion ids with the end token).

    The same `seed` gives the same weights on the same machine. Raises `WeightsError` when some lesson is not learned
    within `max_epochs`; for a hundred short lessons a tiny Qwen3 needs seconds to a minute on a CPU.
    """
    torch = require("torch", feature="overfit", install=INSTALL)
    target = Path(shutil.copytree(checkpoint, folder, dirs_exist_ok=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_weights(checkpoint, "fp32", device_map="cpu").model
        left = _learn(model, list(_batches(sorted(set(lessons), key=lambda lesson: len(lesson[0])))), max_epochs)
    if left:
        raise WeightsError(f"{left} tokens are still wrong after {max_epochs} epochs. Give fewer or shorter lessons.")
    saving = require("safetensors.torch", feature="overfit", install=INSTALL)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    saving.save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _learn(model: Any, batches: list[dict[str, Any]], max_epochs: int) -> int:
    """Train until every token of every reply is the most likely one, twice in a row; the wrong ones left."""
    torch = require("torch", feature="overfit", install=INSTALL)
    model.train().requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():  # start small: the tiny checkpoint's weights are large on purpose
            if parameter.dim() > 1:
                parameter.normal_(0, 0.04)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    wrong = clean = 0
    for epoch in range(max_epochs):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (epoch + 1) / 10) * 0.99**epoch
        wrong = sum(_step(model, optimizer, batch) for batch in batches)
        clean = clean + 1 if not wrong else 0
        if clean == 2:
            break
    model.eval()
    return wrong


def _step(model: Any, optimizer: Any, batch: dict[str, Any]) -> int:
    torch = require("torch", feature="overfit", install=INSTALL)
    hidden = model.model(input_ids=batch["ids"], attention_mask=batch["mask"]).last_hidden_state
    rows = hidden[:, :-1][batch["labels"][:, 1:] != _IGNORED]
    wanted = batch["labels"][:, 1:][batch["labels"][:, 1:] != _IGNORED]
    logits = model.lm_head(rows)
    loss = torch.nn.functional.cross_entropy(logits, wanted)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return int((logits.argmax(-1) != wanted).sum())


def _batches(lessons: list[Lesson]) -> Iterator[dict[str, Any]]:
    """Lessons of like length together, padded on the right."""
    rows: list[Lesson] = []
    for lesson in lessons:
        longest = max(len(prompt) + len(reply) for prompt, reply in [*rows, lesson])
        if rows and longest * (len(rows) + 1) > _BATCH_TOKENS:
            yield _padded(rows)
            rows = []
        rows.append(lesson)
    if rows:
        yield _padded(rows)


def _padded(lessons: list[Lesson]) -> dict[str, Any]:
    torch = require("torch", feature="overfit", install=INSTALL)
    longest = max(len(prompt) + len(reply) for prompt, reply in lessons)
    ids = torch.zeros(len(lessons), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for row, (prompt, reply) in enumerate(lessons):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor([*prompt, *reply])
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(reply)
    return {"ids": ids, "mask": mask, "labels": labels}
