"""The subject of the experiment: a small model, taught by a short common warm-up to call tools the clumsy way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from episodes import Job, Played, Subject, Workers, play_all
from learn import TrainRow, backward
from packed import Adapters, Base
from safetensors.torch import load_file, save_file
from torch.nn import functional

from envtune_agents.playground import generated_tasks

WARMUP_SEED = 50
TINY = "tiny"
"""Instead of a checkpoint: a Qwen3-architecture model of about 11 million parameters with a tokenizer of its own."""


class NoDecoder:
    """Where only scripts play, nobody decodes."""

    busy = False

    def step(self) -> list[Any]:
        return []


def scripted(workers: Workers, script: str, tasks: list[Any], levels: list[int]) -> list[Played]:
    """Every task played by a script, at the hint levels in turn."""
    jobs = [Job(i, task, levels[i % len(levels)], 1.0, 96, 12, script, seed=i) for i, task in enumerate(tasks)]
    done = play_all(workers, jobs, NoDecoder(), len(jobs))
    return sorted(done, key=lambda played: played.key)


def supervised_rows(played: list[Played], run: int = 0) -> list[TrainRow]:
    """Rollouts as supervised rows."""
    return [TrainRow(run, *row, advantage=0.0, supervised=True) for item in played for row in item.rows]


def prepare(out: Path, model: str, device: str, settings: dict[str, Any], workers: Workers) -> tuple[Base, Subject]:
    """The warmed-up subject, from `out` when it was made before."""
    folder = out / "subject"
    if model == TINY:
        return _tiny(folder, device, settings, workers)
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


# --- the tiny subject ---


def _tiny(folder: Path, device: str, settings: dict[str, Any], workers: Workers) -> tuple[Base, Subject]:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    if not (folder / "model.safetensors").exists():
        _tiny_tokenizer(folder, settings, workers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    subject = Subject(str(folder), (end,), settings["context"])
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=settings["tiny_width"],
        intermediate_size=3 * settings["tiny_width"],
        num_hidden_layers=settings["tiny_layers"],
        num_attention_heads=settings["tiny_width"] // 64,
        num_key_value_heads=max(1, settings["tiny_width"] // 128),
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float().to(device)
    file = folder / "model.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file, device=device), strict=False)
        return Base(model), subject
    base = Base(model, trainable=True)
    print(f"tiny subject: {sum(p.numel() for p in base.parameters()) / 1e6:.1f}M parameters, {len(tokenizer)} tokens")
    workers.use(subject)
    tasks = generated_tasks(WARMUP_SEED, settings["tiny_tasks"])
    rows = supervised_rows(scripted(workers, "clumsy", tasks, [3, 0]))
    _teach_base(base, rows, settings)
    config.save_pretrained(folder)
    named = {n: t.detach().contiguous().cpu() for n, t in base.weights.items() if n != "lm_head.weight"}
    save_file({f"model.{name}": t for name, t in named.items()}, file, metadata={"format": "pt"})
    for tensor in base.parameters():
        tensor.requires_grad_(False)
    return base, subject


def _teach_base(base: Base, rows: list[TrainRow], settings: dict[str, Any]) -> None:
    """Language modelling on whole conversations at first, so that the prompts teach the language too."""
    steps, peak, started = settings["tiny_steps"], settings["tiny_lr"], time.perf_counter()
    adam = torch.optim.AdamW(base.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    random = Random(0)
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50) * max(0.05, 1 - step / steps)
        for group in adam.param_groups:
            group["lr"] = peak * rate
        batch = random.sample(rows, k=min(settings["tiny_batch"], len(rows)))
        width = max(len(row.prompt) + len(row.completion) for row in batch)
        ids = torch.tensor(
            [[*r.prompt, *r.completion, *[0] * (width - len(r.prompt) - len(r.completion))] for r in batch]
        )
        weight = torch.tensor(
            [
                [
                    *[0.1] * len(r.prompt),
                    *[1.0 if m else 0.1 for m in r.mask],
                    *[0.0] * (width - len(r.prompt) - len(r.mask)),
                ]
                for r in batch
            ]
        )
        ids, weight = ids.to(base.device), weight.to(base.device)[:, 1:]
        positions = torch.arange(width - 1, device=base.device).expand(len(batch), -1)
        logits = base.logits(base.hidden(ids[:, :-1], positions, None, base.attend_whole))
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(weight)
        loss = (losses * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if step % 50 == 0:
            said = losses[weight == 1.0].mean()
            print(
                f"warm-up step {step}: loss {loss:.4f}, replies {said:.4f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def _tiny_tokenizer(folder: Path, settings: dict[str, Any], workers: Workers) -> None:
    """A byte-level BPE over the playground's own language; digits stand alone, so that ids can be copied."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from envtune_agents.testing.tiny import CHAT_TEMPLATE, PLAIN_ADDED_TOKENS, SPECIAL_TOKENS, tiny_qwen

    first = folder.parent / "bytes"
    tiny_qwen(first)
    spoken = AutoTokenizer.from_pretrained(first)
    end = spoken.convert_tokens_to_ids("<|im_end|>")
    workers.use(Subject(str(first), (end,), 100_000))
    tasks = generated_tasks(WARMUP_SEED, min(240, settings["tiny_tasks"]))
    played = scripted(workers, "clumsy", tasks, [3, 0])
    texts = [spoken.decode([*row[0], *row[1]]) for item in played for row in item.rows]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1500, show_progress=False, special_tokens=[], initial_alphabet=alphabet)
    )
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "texts.json").write_text(json.dumps(texts[:2]))
