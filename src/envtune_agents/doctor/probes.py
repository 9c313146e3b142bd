"""Tiny runs that show whether a backend really works: some ten seconds in all, most of them imports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from envtune_agents.errors import EngineError

GPU_PROBE = "torch on a GPU"


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was tried."""

    name: str
    feature: str
    """The feature whose packages it tries."""
    works: bool | None
    """None when it could not be tried: not installed, or no such device."""
    says: str
    """What was seen, or what went wrong, in one line."""
    seconds: float
    """Wall seconds, imports included."""


def run_probes() -> list[Probe]:
    """Every probe, in the order of the data flow."""
    return [_run(*one) for one in _PROBES]


def _run(name: str, feature: str, needs: str, probe: Callable[[], str | None]) -> Probe:
    started = time.perf_counter()
    if find_spec(needs) is None:
        return Probe(name, feature, None, f"{needs} is not installed", 0.0)
    try:
        says, works = probe(), True
    except Exception as error:  # other people's native libraries: what they raise is the finding
        first = (str(error).strip().splitlines() or [""])[0]
        says, works = f"{type(error).__name__}: {first}", False
    seconds = time.perf_counter() - started
    if says is None:
        return Probe(name, feature, None, "torch sees no such device", seconds)
    return Probe(name, feature, works, says, seconds)


def _episode() -> str:
    """Plays one hinted call of a generated task."""
    from envtune_agents.graph import build_agent_graph
    from envtune_agents.playground import Playground, playground_tasks
    from envtune_agents.testing import ScriptedChatModel, calls_message

    task = playground_tasks(seed=0, n=1, category="base")[0]
    model = ScriptedChatModel(script=[calls_message(("no_such_tool", {})), "Done."])
    state = build_agent_graph(model, Playground(task), hints=3).invoke({})
    hinted = sum('"hint"' in str(message.content) for message in state["messages"] if message.type == "tool")
    if hinted != 1:
        raise EngineError(f"The episode shows {hinted} hints; expected 1.")
    return "one episode played, one hint shown"


def _torch_cpu() -> str:
    import torch

    from envtune_agents.weights.load import fast_bf16_cpu

    _multiply(torch, "cpu", torch.float32)
    precision = "bf16 arithmetic in hardware" if fast_bf16_cpu() else "no bf16 arithmetic: 'auto' takes fp32"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}"


def _torch_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    kinds = [torch.float32, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16]
    for kind in kinds:
        _multiply(torch, "cuda", kind)
    names = ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, computes {names}"


def _multiply(torch: Any, device: str, kind: Any) -> None:
    """A product whose every entry is 64 exactly, in any precision."""
    ones = torch.ones(64, 64, dtype=kind, device=device)
    if not bool((ones @ ones == 64).all()):
        raise EngineError(f"A product of {kind} matrices on {device} is wrong.")


def _quantised(bits: int) -> str:
    """Multiplies by a quantised matrix and compares with the matrix itself."""
    import torch

    bitsandbytes: Any = import_module("bitsandbytes")  # its type information exports nothing
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = torch.nn.Linear(64, 64, bias=False)
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    if bits == 8:
        layer = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    given = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = plain(given), layer.to(device)(given.to(device)).float().cpu()
    error = float((wanted - got).abs().max() / wanted.abs().max())
    if not error < 0.5:
        raise EngineError(f"A product with {bits}-bit weights is off by {error:.0%}.")
    return f"bitsandbytes {bitsandbytes.__version__} on {device}, off by {error:.1%} in one product"


def _grammar() -> str:
    import llguidance

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(schema))
    text = tokenizer.tokenize_str('{"city": 1')
    if matcher.is_error() or matcher.validate_tokens(text) != len(text) - 1:
        raise EngineError(f"The grammar of a schema does not hold: {matcher.get_error() or 'it admits a wrong type'}.")
    return f"llguidance {getattr(llguidance, '__version__', '')} refuses a call of the wrong type".replace("  ", " ")


_PROBES: tuple[tuple[str, str, str, Callable[[], str | None]], ...] = (
    ("episode", "core", "langgraph", _episode),
    ("torch on the CPU", "local", "torch", _torch_cpu),
    (GPU_PROBE, "local", "torch", _torch_gpu),
    ("8-bit weights", "quant", "bitsandbytes", lambda: _quantised(8)),
    ("4-bit weights", "quant", "bitsandbytes", lambda: _quantised(4)),
    ("grammar", "grammar", "llguidance", _grammar),
)
"""Name, feature, the package without which there is nothing to try, and the check."""
