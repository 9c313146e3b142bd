"""The tiny subject: a Qwen3-architecture model that two cores can train, with a tokenizer made for the playground.

The tokenizer keeps every name and digit as one token, so that a value can be copied, and joins what is always written
the same way: a tool's whole declaration, the frame of a call. A conversation of 600 ordinary tokens has about 230.

The warm-up teaches the language of every domain, also of those that the training leaves out (the renamed tools and the
stock room): what is held out there is practice, not vocabulary.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from episodes import Workers
from packed import Base
from safetensors.torch import load_file, save_file
from shared_prompts import TrainRow
from subject import WARMUP_SEED, scripted, supervised_rows
from torch.nn import functional
from worker import Subject

from envtune_agents.playground import generated_tasks
from envtune_agents.types import Task

HEAD_DIM = 32
OTHER_TOKENS = 0.25
"""Share of the tokens that nobody must write (prompts, tool answers) that the warm-up predicts too, with weight 0.1."""


def tiny_subject(folder: Path, device: str, settings: dict[str, Any], workers: Workers) -> tuple[Base, Subject]:
    """The taught subject, from `folder` when it was made before; an interrupted lesson goes on."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    if not (folder / "tokenizer.json").exists():
        _make_tokenizer(folder, workers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    subject = Subject(str(folder), (end,), settings["context"])
    width = settings["tiny_width"]
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings["tiny_layers"],
        num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=width // HEAD_DIM // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float().to(device)
    file = folder / "model.safetensors"
    if not file.exists():
        count = sum(p.numel() for p in model.parameters())
        print(f"tiny subject: {count / 1e6:.1f}M parameters, {len(tokenizer)} tokens", flush=True)
        workers.use(subject)
        rows = supervised_rows(scripted(workers, "clumsy", warmup_tasks(settings["tiny_tasks"]), [3, 0]))
        base = Base(model, trainable=True)
        _teach(base, rows, settings, folder / "lesson.safetensors")
        config.save_pretrained(folder)
        named = {n: t.detach().contiguous().cpu() for n, t in base.weights.items() if n != "lm_head.weight"}
        save_file({f"model.{name}": t for name, t in named.items()}, file, metadata={"format": "pt"})
    model.load_state_dict(load_file(file, device=device), strict=False)
    return Base(model), subject


def warmup_tasks(count: int) -> list[Task]:
    """`count` tasks of other seeds than those of training and tests: half of the training domains, a quarter of the
    same under other names, a quarter in the stock room."""
    quarter = count // 4
    return [
        *generated_tasks(WARMUP_SEED, 2 * quarter),
        *generated_tasks(WARMUP_SEED + 1, quarter, other_names=True),
        *generated_tasks(WARMUP_SEED + 2, quarter, domains=("stock",)),
    ]


def _teach(base: Base, rows: Sequence[TrainRow], settings: dict[str, Any], saved: Path) -> None:
    """Imitation of the rows, in batches of rows of about the same length."""
    steps, size, started = settings["tiny_steps"], settings["tiny_batch"], time.perf_counter()
    adam = torch.optim.AdamW(base.parameters(), lr=settings["tiny_lr"], betas=(0.9, 0.98), weight_decay=0.01)
    first = _resumed(base, adam, saved)
    for step in range(first, steps):
        for group in adam.param_groups:
            group["lr"] = settings["tiny_lr"] * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
        random = Random(step)
        pool = sorted(random.sample(rows, k=min(4 * size, len(rows))), key=lambda row: len(row.prompt + row.completion))
        at = random.randrange(max(1, len(pool) // size)) * size
        replies = _imitate(base, pool[at : at + size], random.random())
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            took = time.perf_counter() - started
            print(f"warm-up step {step}: loss of a reply token {replies:.4f}, {took:.0f} s", flush=True)
        if (step + 1) % 100 == 0:
            _save_lesson(base, adam, step + 1, saved)


def _imitate(base: Base, batch: Sequence[TrainRow], seed: float) -> float:
    """Adds the gradients of a batch; the mean loss of the reply tokens."""
    width = max(len(row.prompt) + len(row.completion) for row in batch)
    ids, said = [], []
    for row in batch:
        rest = width - len(row.prompt) - len(row.completion)
        ids.append([*row.prompt, *row.completion, *[0] * rest])
        said.append([*[0.1] * len(row.prompt), *[1.0 if m else 0.1 for m in row.mask], *[0.0] * rest])
    held, weight = torch.tensor(ids, device=base.device), torch.tensor(said, device=base.device)[:, 1:]
    draw = torch.Generator().manual_seed(int(seed * 2**31))
    chosen = (weight == 1.0) | (
        (weight > 0) & (torch.rand(weight.shape, generator=draw) < OTHER_TOKENS).to(base.device)
    )
    positions = torch.arange(width - 1, device=base.device).expand(len(batch), -1)
    hidden = base.hidden(held[:, :-1], positions, None, base.attend_whole)
    losses = functional.cross_entropy(base.logits(hidden[chosen]), held[:, 1:][chosen], reduction="none")
    weight = weight[chosen]
    ((losses * weight).sum() / weight.sum()).backward()
    return float(losses[weight == 1.0].detach().mean())


def _save_lesson(base: Base, adam: torch.optim.Optimizer, step: int, saved: Path) -> None:
    tensors = {f"weight.{i}": t.detach().contiguous() for i, t in enumerate(base.parameters())}
    for i, t in enumerate(base.parameters()):
        tensors |= {f"adam.{i}.{name}": value.contiguous() for name, value in adam.state[t].items()}
    part = saved.with_suffix(".part")
    save_file(tensors | {"step": torch.tensor(step)}, part)
    part.replace(saved)


def _resumed(base: Base, adam: torch.optim.Optimizer, saved: Path) -> int:
    """The step at which an interrupted lesson goes on."""
    if not saved.exists():
        return 0
    tensors = load_file(saved)
    with torch.no_grad():
        for i, t in enumerate(base.parameters()):
            t.copy_(tensors[f"weight.{i}"])
            adam.state[t] = {n: tensors[f"adam.{i}.{n}"] for n in ("step", "exp_avg", "exp_avg_sq")}
    return int(tensors["step"])


# --- its tokenizer ---


def _names() -> list[str]:
    """Every word that stands for a thing in some world: what a call's arguments are made of."""
    from envtune_agents.playground import domains, tasks

    groups = [domains._NAMES, domains._WORDS, domains._FOLDERS, domains._FILES, domains._NEW_FOLDERS, domains._CITIES]
    groups += [domains._ITEMS, domains._ROOMS, tasks._CITIES]
    return sorted({name for group in groups for name in group}, key=lambda name: (-len(name), name))


def _make_tokenizer(folder: Path, workers: Workers) -> None:
    """A byte-level BPE over whole phrases; names, digits and line ends stand alone."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from envtune_agents.testing.tiny import CHAT_TEMPLATE, PLAIN_ADDED_TOKENS, SPECIAL_TOKENS

    alone = "|".join(rf"\b{re.escape(name)}\b" for name in _names()) + r"|[0-9]|\n"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(alone), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    markers = "|".join(re.escape(marker) for marker in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS))
    pieces = [piece for text in _spoken(folder, workers) for piece in re.split(markers, text) if piece]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        pieces,
        trainers.BpeTrainer(vocab_size=2200, show_progress=False, initial_alphabet=alphabet, max_token_length=400),
    )
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def _spoken(folder: Path, workers: Workers) -> list[str]:
    """Conversations of the clumsy script, as text."""
    from transformers import AutoTokenizer

    from envtune_agents.testing.tiny import tiny_qwen

    letters = folder.parent / "bytes"
    tiny_qwen(letters)
    tokenizer = AutoTokenizer.from_pretrained(letters)
    workers.use(Subject(str(letters), (tokenizer.convert_tokens_to_ids("<|im_end|>"),), 100_000))
    played = scripted(workers, "clumsy", warmup_tasks(300), [3, 0])
    return [tokenizer.decode([*row[0], *row[1]]) for item in played for row in item.rows]
