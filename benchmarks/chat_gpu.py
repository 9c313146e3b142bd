"""Qwen3-4B-Instruct-2507's own shape with random weights on one GPU: memory, prefill and decode rates.

    python benchmarks/chat_gpu.py                # bf16, bf16 without CUDA graphs, 8-bit, 4-bit
    python benchmarks/chat_gpu.py --only bf16

Nothing is downloaded and no tokenizer is needed. Each configuration runs in a process of its own, so that one that
fails leaves the others' rows. Prints a Markdown table; also writes `chat_gpu.json` into the folder $OUT when it is set.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BANDWIDTH = 4.8e12
"""Bytes a second an H200 reads by its data sheet; a copy moves about 4.3e12."""
MATRIX = 790e12
"""bf16 operations a second an H200 was measured to do on random data."""
SHARED, OWN, NEW = 2000, 500, 64
"""Tokens: of the prompt that all conversations share, of each one's own part, and sampled."""
CONVERSATIONS = (1, 16, 64)
CACHE_BYTES = 14 * 1024**3
CONFIGURATIONS = ("bf16", "bf16 without graphs", "8bit", "4bit")
TIMEOUT_S = 75
CONFIG = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
}


class _NoText:
    """Stands where a tokenizer would: the rates do not depend on text."""

    backend_tokenizer: _NoText

    def __init__(self) -> None:
        self.backend_tokenizer = self

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return ""


def build(precision: str) -> Any:
    """The weights, drawn at random on the GPU; quantised layer by layer where asked."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from envtune_agents.weights import Weights

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(Qwen3Config(**CONFIG, dtype="bfloat16")).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    if precision in ("8bit", "4bit"):
        quantise(model, precision)
        torch.cuda.empty_cache()
    return Weights(
        model=model,
        tokenizer=_NoText(),
        name="Qwen3-4B, random",
        precision=precision,
        context_length=CONFIG["max_position_embeddings"],  # type: ignore[arg-type]
        end_token_ids=(),
        chat_template=None,
    )


def quantise(model: Any, precision: str) -> None:
    """Every linear layer but the head as bitsandbytes stores it: what `load_weights` does with a checkpoint."""
    import bitsandbytes as bnb
    import torch

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        data, shape = layer.weight.data.cpu(), (layer.in_features, layer.out_features)
        if precision == "4bit":
            small = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
            small.weight = bnb.nn.Params4bit(data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        else:
            small = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            small.weight = bnb.nn.Int8Params(data.half(), requires_grad=False, has_fp16_weights=False)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, small.to("cuda"))


def measure(configuration: str) -> dict[str, Any]:
    """One configuration's figures."""
    import torch

    from envtune_agents.engine import Engine

    started = time.perf_counter()
    precision = configuration.split()[0]
    graphs = "without graphs" not in configuration
    engine = Engine(lambda: build(precision), cache_bytes=CACHE_BYTES, cuda_graphs=graphs)
    model = engine.weights.model
    weight_bytes = model.get_memory_footprint()
    found: dict[str, Any] = {
        "configuration": configuration,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "weights_gib": weight_bytes / 2**30,
        "build_s": time.perf_counter() - started,
        "server": type(engine._server).__name__,
        "kernel": getattr(getattr(getattr(engine._server, "_packed", None), "_kernel", None), "__name__", None),
        "rows": [],
    }
    asyncio.run(rates(engine, found, weight_bytes))
    found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    recorded = getattr(getattr(engine._server, "_packed", None), "graphs", None)
    found["graphs"] = getattr(recorded, "state", None)
    return found


async def rates(engine: Any, found: dict[str, Any], weight_bytes: int) -> None:
    """Adds the prefill rate of one long prompt and, for each number of conversations, prefill and decode rates."""
    from envtune_agents.engine import GenerationRequest

    def prompt(salt: int, length: int) -> tuple[int, ...]:
        return tuple((salt * 7919 + i * 104729) % 150000 for i in range(length))

    async def wall(prompts: list[tuple[int, ...]], new: int) -> float:
        started = time.perf_counter()
        requests = [GenerationRequest(ids, max_new_tokens=new) for ids in prompts]
        await asyncio.gather(*(engine.agenerate(request) for request in requests))
        return time.perf_counter() - started

    await wall([prompt(1, 256)], 8)
    await wall([prompt(2, 4096)], 1)
    times = [await wall([prompt(10 + i, 4096)], 1) for i in range(3)]
    found["prefill_tok_s"] = 4096 / statistics.median(times)
    found["prefill_share"] = flops(4096) / statistics.median(times) / MATRIX
    shared = prompt(3, SHARED)
    await wall([(*shared, 1)], 1)
    for n in CONVERSATIONS:
        prompts = [(*shared, *prompt(1000 * n + i, OWN)) for i in range(n)]
        first = await wall(prompts, 1)
        await wall(prompts, NEW + 1)  # also captures graphs, where there are some
        once = min([await wall(prompts, 1) for _ in range(2)])
        whole = statistics.median([await wall(prompts, NEW + 1) for _ in range(3)])
        step = (whole - once) / NEW
        read = weight_bytes + (SHARED + n * (OWN + NEW / 2)) * kv_bytes()
        row = {"n": n, "prefill_tok_s": n * OWN / first, "decode_tok_s": n / step, "step_ms": 1e3 * step}
        found["rows"].append({**row, "read_share": read / step / BANDWIDTH})
        print(json.dumps(found["rows"][-1]), file=sys.stderr, flush=True)


def kv_bytes() -> int:
    """Bytes of keys and values of one token in bf16."""
    return 2 * 2 * CONFIG["num_hidden_layers"] * CONFIG["num_key_value_heads"] * CONFIG["head_dim"]  # type: ignore[operator,no-any-return]


def flops(tokens: int) -> float:
    """Operations of one prompt: matrix products of every layer, and causal attention; the head reads one token."""
    heads, size, hidden = CONFIG["num_attention_heads"], CONFIG["head_dim"], CONFIG["hidden_size"]
    attention = (2 * heads + 2 * CONFIG["num_key_value_heads"]) * size * hidden  # type: ignore[operator]
    layer = attention + 3 * hidden * CONFIG["intermediate_size"]  # type: ignore[operator]
    scores = 2 * 2 * heads * size * tokens * tokens / 2  # type: ignore[operator]
    return float(CONFIG["num_hidden_layers"] * (2 * layer * tokens + scores))  # type: ignore[operator]


def table(results: list[dict[str, Any]]) -> str:
    """The Markdown table."""
    lines = [
        "| weights | GiB weights / peak | prefill tok/s, 4,096 tokens (share of matrix limit) "
        "| decode tok/s at 1 / 16 / 64 conversations | ms a step | share of 4.8 TB/s |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if "error" in result:
            lines.append(f"| {result['configuration']} | failed: {result['error']} | | | | |")
            continue
        rows = result["rows"]
        rates = " / ".join(f"{row['decode_tok_s']:,.0f}" for row in rows)
        steps = " / ".join(f"{row['step_ms']:.1f}" for row in rows)
        shares = " / ".join(f"{row['read_share']:.0%}" for row in rows)
        lines.append(
            f"| {result['configuration']} | {result['weights_gib']:.1f} / {result['peak_gib']:.1f} "
            f"| {result['prefill_tok_s']:,.0f} ({result['prefill_share']:.0%}) | {rates} | {steps} | {shares} |"
        )
    return "\n".join(lines)


def isolated(configuration: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", configuration]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"configuration": configuration, "error": f"took more than {TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"configuration": configuration, "error": f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> None:
    """Measures each configuration and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CONFIGURATIONS, action="append", help="leave the others out")
    parser.add_argument("--measure", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    results = []
    for configuration in options.only or CONFIGURATIONS:
        results.append(isolated(configuration))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        if os.environ.get("OUT"):
            Path(os.environ["OUT"], "chat_gpu.json").write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
