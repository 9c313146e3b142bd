"""`load_weights`: checked files -> a model in evaluation mode with its tokenizer, at the asked precision."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from envtune_agents.errors import EnvTuneError, WeightsError, require, unknown
from envtune_agents.weights.memory import memory_report
from envtune_agents.weights.merged import merge
from envtune_agents.weights.quantized import quantized_config
from envtune_agents.weights.source import LOCAL_INSTALL, WeightsSource, find_tokenizer, find_weights

Precision = Literal["auto", "fp32", "bf16", "fp16", "w16a32", "8bit", "4bit"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
UNLIMITED_CONTEXT = 1_000_000
"""Context of weights that hold no model, in tokens."""
_MOST_UNPACKED = 24
"""How many times larger a GGUF file can be once it is unpacked: the smallest of its types, 1.6 bits a number, to 32."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded checkpoint: everything the engine and the chat model ask of it."""

    model: Any = field(repr=False)
    """The transformers model, in evaluation mode."""
    tokenizer: Any = field(repr=False)
    """The transformers fast tokenizer; `encode` and `decode` below are safe to call from any thread."""
    name: str
    """The checkpoint as the caller named it."""
    precision: str
    """What it was loaded as: "fp32", "bf16", "fp16", "w16a32", "8bit" or "4bit"."""
    context_length: int
    """Most tokens of prompt and completion together."""
    end_token_ids: tuple[int, ...]
    """Tokens that end a reply."""
    chat_template: str | None = field(repr=False)
    """The checkpoint's own Jinja chat template, or None."""

    @property
    def template_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of `chat_template`; "" without one."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest()[:16] if self.chat_template else ""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in the text become themselves and none is added."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens kept."""
        return str(self.tokenizer.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False))


def load_weights(
    model: str | Path,
    precision: str = "auto",
    *,
    device_map: str | dict[str, Any] | None = None,
    max_context: int | None = None,
    revision: str | None = None,
    packed: bool = False,
) -> Weights:
    """The checkpoint at `model`, ready to run.

    `model`: a folder with safetensors, a LoRA adapter's folder (it is merged into its base model), a GGUF file, a hub
    id, or "smollm2" (the demo model). `precision`: "auto" takes
    the checkpoint's own type on a GPU, bf16 on a CPU with bf16 arithmetic, else fp32; "w16a32" keeps weights in fp16
    and computes in fp32, on a CPU and for inference only; "8bit" and "4bit" (nf4 with double quantisation, computed in
    the type "auto" would take) go through bitsandbytes. `device_map` as in
    transformers; None means the first GPU, else the CPU. `max_context` lowers the context, in tokens, to save memory.
    `packed`: for inference only; fp32 on a CPU decodes faster then, all else is as without it.
    Raises `WeightsError` when the checkpoint cannot be loaded as asked or does not fit into memory, and
    `MissingDependencyError` when a package is not installed. Ours; loading itself is transformers'.
    """
    if precision not in PRECISIONS:
        raise WeightsError(unknown("precision", precision, PRECISIONS))
    source = find_weights(model, revision=revision)
    require("torch", feature="Loading weights", install=LOCAL_INSTALL)
    with _reported(source), _quiet(source):
        tokenizer = _load_tokenizer(source)
        config = _load_config(source)
        loaded, used = _load_model(source, config, precision, device_map)
        if packed and used == "fp32" and loaded.device.type == "cpu" and device_map in (None, "cpu"):
            _pack(loaded)
    return Weights(
        model=loaded.eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=source.name,
        precision=used,
        context_length=_context_length(config, max_context),
        end_token_ids=_end_token_ids(loaded, tokenizer),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> Any:
    """The fast tokenizer of the checkpoint at `model`, without its weights."""
    source = find_tokenizer(model, revision=revision)
    with _reported(source), _quiet(source):
        return _load_tokenizer(source)


def tokenizer_only(
    model: str | Path, *, revision: str | None = None, context_length: int = UNLIMITED_CONTEXT
) -> Weights:
    """Tokenizer, chat template and end tokens of the checkpoint at `model`, as `Weights` that hold no model.

    For whatever renders, encodes and reads but never runs it: a script, or a client of a server. Needs no torch, no
    weights in the folder, and fetches none from the hub.
    """
    source = find_tokenizer(model, revision=revision)
    with _reported(source), _quiet(source):
        tokenizer = _load_tokenizer(source)
    return Weights(
        model=None,
        tokenizer=tokenizer,
        name=source.name,
        precision="none",
        context_length=context_length,
        end_token_ids=_named_ends(tokenizer, *_eos_in_files(source)),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _eos_in_files(source: WeightsSource) -> list[Any]:
    """What the folder's JSON configurations name as `eos_token_id`; a GGUF file tells it through its tokenizer."""
    if source.gguf_file:
        return []
    files = (source.folder / "config.json", source.folder / "generation_config.json")
    read = [json.loads(file.read_text()) for file in files if file.is_file()]
    return [config.get("eos_token_id") for config in read if isinstance(config, dict)]


@contextmanager
def _reported(source: WeightsSource) -> Iterator[None]:
    """Anything a damaged checkpoint makes the loaders raise becomes a `WeightsError` that names the place."""
    place = source.folder / source.gguf_file if source.gguf_file else source.folder
    try:
        yield
    except EnvTuneError:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and gguf share no base class
        reason = str(error).strip().splitlines()
        if _out_of_memory(error):
            raise WeightsError(_too_large(source, reason[0] if reason else "")) from error
        raise WeightsError(
            f"The checkpoint at '{place}' cannot be loaded ({type(error).__name__}: {reason[0] if reason else ''}). "
            "It is damaged or incomplete; copy or download it again."
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _too_large(source: WeightsSource, reason: str) -> str:
    """What to turn when a checkpoint does not fit, with its needs in numbers."""
    report = memory_report(source.folder / source.gguf_file if source.gguf_file else source.folder)
    needs = ", ".join(f"{need.precision} {need.weights / 1e9:.1f} GB" for need in report.needs)
    few = "precision='bf16', 'fp16' or 'w16a32', or a file with fewer parameters"
    smaller = few if source.gguf_file else "precision='8bit' or '4bit'"
    return (
        f"There is not enough memory for '{source.name}' ({reason or 'out of memory'}). Its weights take {needs}. Use "
        f"{smaller}; device_map='auto' to spread it over devices; and, for the conversations, a smaller max_context or "
        f"cache_bytes (one token takes {report.needs[-1].cache_per_token / 1e3:.0f} KB)."
    )


@contextmanager
def _quiet(source: WeightsSource) -> Iterator[None]:
    """No progress bars and no warnings while loading; the former settings return afterwards."""
    logging = require("transformers.utils.logging", feature="Loading weights", install=LOCAL_INSTALL)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with ExitStack() as stack:
            if source.gguf_file:
                require("gguf", feature="Loading a GGUF file", install=LOCAL_INSTALL)
                from envtune_agents.weights.gguf import quick_gguf

                stack.enter_context(quick_gguf())
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _where(source: WeightsSource) -> dict[str, Any]:
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    return {**where, "gguf_file": source.gguf_file} if source.gguf_file else where


def _load_tokenizer(source: WeightsSource) -> Any:
    transformers = require("transformers", feature="Loading weights", install=LOCAL_INSTALL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, **_where(source))
    if not getattr(tokenizer, "is_fast", False):
        raise WeightsError(f"'{source.folder}' has no fast tokenizer. Save it again with a tokenizer.json.")
    tokenizer.backend_tokenizer.no_truncation()  # some tokenizer.json files cut or pad whatever they encode
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _load_config(source: WeightsSource) -> Any:
    transformers = require("transformers", feature="Loading weights", install=LOCAL_INSTALL)
    try:
        return transformers.AutoConfig.from_pretrained(source.folder, **_where(source))
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"transformers {transformers.__version__} does not know the architecture of '{source.folder}' "
            f"({str(error).strip().splitlines()[0]}). Wanted: a model_type of a causal language model that "
            "transformers ships, such as 'qwen3'; code inside a checkpoint is never run. A newer version may know it."
        ) from error


def _load_model(source: WeightsSource, config: Any, precision: str, device_map: Any) -> tuple[Any, str]:
    """The model and the name of the precision it ended up with."""
    torch = require("torch", feature="Loading weights", install=LOCAL_INSTALL)
    transformers = require("transformers", feature="Loading weights", install=LOCAL_INSTALL)
    on_gpu = bool(torch.cuda.is_available()) and device_map != "cpu"
    _refuse_too_large(source, _counted_as(torch, precision, on_gpu), _room(torch, on_gpu, device_map))
    if precision == "w16a32":
        _refuse_unpackable(on_gpu, device_map)
    options: dict[str, Any] = {"dtype": _dtype(torch, precision, on_gpu)}
    if precision in ("8bit", "4bit"):
        options["quantization_config"] = quantized_config(source, precision, options["dtype"])
    elif source.gguf_file:
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    place = device_map or ("cuda" if on_gpu else None)
    if place is not None:
        options["device_map"] = place
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        source.folder, config=config, use_safetensors=True, output_loading_info=True, **options, **_where(source)
    )
    _refuse_missing(source, report)
    if source.adapter:
        model = merge(model, source.adapter)
    if precision == "w16a32":
        from envtune_agents.weights.half import pack

        pack(model)
        return model, precision
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return model, precision if precision in ("8bit", "4bit") else names.get(model.dtype, str(model.dtype))


def _pack(model: Any) -> None:
    from envtune_agents.weights.packed import can_pack_full, pack_full

    if can_pack_full():
        pack_full(model)


def _refuse_unpackable(on_gpu: bool, device_map: Any) -> None:
    from envtune_agents.weights.half import available

    if on_gpu or device_map not in (None, "cpu"):
        raise WeightsError("Precision 'w16a32' is for a CPU. Use 'bf16' or 'fp16' on a GPU, or device_map='cpu'.")
    if not available():
        raise WeightsError("Precision 'w16a32' needs torch with FBGEMM, which it has on x86. Use 'fp32' or 'bf16'.")


def _room(torch: Any, on_gpu: bool, device_map: Any) -> int | None:
    """Bytes of memory there are in all where the model shall go; None when it is spread or nobody knows."""
    if device_map not in (None, "cpu", "cuda"):
        return None
    if on_gpu:
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # a container's own limit
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return machine


def _counted_as(torch: Any, precision: str, on_gpu: bool) -> str:
    """The precision whose memory "auto" will take; on a GPU the half precision that checkpoints come in."""
    if precision != "auto":
        return precision
    return "bf16" if on_gpu or _fast_dtype(torch, on_gpu) == torch.bfloat16 else "fp32"


def _refuse_too_large(source: WeightsSource, precision: str, room: int | None) -> None:
    """Say at once that it can never fit: on a CPU the system would kill the process without a word."""
    if room is None:
        return
    place = source.folder / source.gguf_file if source.gguf_file else source.folder
    if source.gguf_file and place.stat().st_size * _MOST_UNPACKED < room:
        return  # reading the sizes of a small one takes as long as loading it
    with contextlib.suppress(WeightsError):  # sizes that cannot be read are no reason not to try
        report = memory_report(place)
        need = next((need for need in report.needs if need.precision == precision), None)
        if need is not None and need.weights > room:
            raise MemoryError(f"{need.weights / 1e9:.1f} GB of weights, {room / 1e9:.1f} GB of memory")


def _dtype(torch: Any, precision: str, on_gpu: bool) -> Any:
    """The dtype to load in, or "auto" for the checkpoint's own."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "w16a32": torch.float16}
    if precision in named:
        return named[precision]
    if precision == "auto" and on_gpu:
        return "auto"
    return _fast_dtype(torch, on_gpu)


def _fast_dtype(torch: Any, on_gpu: bool) -> Any:
    """What this machine computes fastest in without loss of range: also what quantised weights are unpacked to."""
    if on_gpu:
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if fast_bf16_cpu() else torch.float32


def fast_bf16_cpu() -> bool:
    """True when this CPU multiplies bf16 in hardware. Without that bf16 prefill is four times slower than fp32."""
    torch = require("torch", feature="Loading weights", install=LOCAL_INSTALL)
    if platform.machine() == "arm64" and platform.system() == "Darwin":
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if known:
        return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _refuse_missing(source: WeightsSource, report: dict[str, Any]) -> None:
    """Transformers fills absent tensors with random numbers and only warns; a checkpoint with holes is an error."""
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        raise WeightsError(
            f"'{source.folder}' lacks {len(missing)} of the model's tensors, such as '{missing[0]}'. The checkpoint is "
            "incomplete or its config.json belongs to another model."
        )


def _context_length(config: Any, max_context: int | None) -> int:
    """Tokens the model was trained for, or fewer when the caller wants fewer."""
    native = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 4096)
    if max_context is None:
        return native
    if not 1 <= max_context <= native:
        raise WeightsError(f"max_context is {max_context}; this checkpoint accepts 1 to {native} tokens.")
    return max_context


def _end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token the checkpoint or ChatML ends a reply with, ascending."""
    configs = (model.config, model.generation_config)
    return _named_ends(tokenizer, *(getattr(config, "eos_token_id", None) for config in configs))


def _named_ends(tokenizer: Any, *configured: Any) -> tuple[int, ...]:
    listed = [tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")]
    for found in configured:
        listed += list(found) if isinstance(found, (list, tuple)) else [found]
    return tuple(sorted({int(token) for token in listed if token is not None}))
