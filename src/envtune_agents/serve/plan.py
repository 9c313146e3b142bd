"""What is to be served and how, and the command line of a foreign server that does exactly that.

Pure, except that a local checkpoint's tokenizer is read: its chat template decides which parser reads its tool calls.
Flags are those of vLLM 0.32 and SGLang 0.5.23.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envtune_agents.errors import TaskError, WeightsError, unknown
from envtune_agents.weights import PRECISIONS, load_tokenizer
from envtune_agents.weights.source import find_local

BACKENDS = ("transformers", "vllm", "sglang")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
_DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_JSON_PARSERS = {"vllm": "hermes", "sglang": "qwen25"}
_XML_PARSERS = {"vllm": "qwen3_coder", "sglang": "qwen3_coder"}
_XML_NAMES = ("qwen3-coder", "qwen3.5")


@dataclass(frozen=True, slots=True)
class ServePlan:
    """One server."""

    model: str
    """A folder, a hub id, or for the backend "transformers" also a GGUF file or "smollm2"."""
    backend: str = "transformers"
    """One of `BACKENDS`."""
    host: str = DEFAULT_HOST
    """The address to listen at; "0.0.0.0" is every one of the machine."""
    port: int = DEFAULT_PORT
    name: str | None = None
    """What clients call the model; None takes the hub id, or the last part of the path."""
    precision: str = "auto"
    """See `load_weights`; "8bit" and "4bit" only with the backend "transformers"."""
    max_context: int | None = None
    """Most tokens of prompt and reply; None is what the checkpoint has."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters by name: the folder of each."""
    python: str = sys.executable
    """The interpreter that has vLLM or SGLang; their requirements seldom fit into one environment with others."""
    extra: Sequence[str] = ()
    """More arguments for vLLM or SGLang, as they are."""

    def __post_init__(self) -> None:
        """Raises `TaskError` or `WeightsError` for what can never be served."""
        if self.backend not in BACKENDS:
            raise TaskError(unknown("backend", self.backend, BACKENDS))
        if self.precision not in PRECISIONS:
            raise WeightsError(unknown("precision", self.precision, PRECISIONS))
        if not 0 <= self.port <= 65535:
            raise TaskError(f"port is {self.port}. Wanted: 0 to 65535; 0 takes a free one.")
        if self.backend != "transformers":
            self._check_foreign()

    def _check_foreign(self) -> None:
        if self.precision not in _DTYPES:
            raise WeightsError(
                f"{self.backend} is not started at precision '{self.precision}'. Known: {', '.join(_DTYPES)}; or serve "
                "a checkpoint that is quantised already, or use --backend transformers."
            )
        if self.port == 0:
            raise TaskError(f"{self.backend} needs a port of its own, not 0.")
        found = find_local(self.model)
        if found is not None and found.gguf_file:
            raise WeightsError(
                f"'{self.model}' is a GGUF file, and {self.backend} is started on folders with safetensors or hub ids. "
                "Use --backend transformers, or the checkpoint it was made from."
            )

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        if self.name:
            return self.name
        path = Path(self.model).expanduser()
        return path.resolve().name if path.exists() else self.model

    @property
    def url(self) -> str:
        """Where clients on this machine find it."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::', '') else self.host}:{self.port}"


def server_command(plan: ServePlan) -> list[str]:
    """The command that starts `plan`, as a list of arguments."""
    if plan.backend == "vllm":
        return [*_vllm(plan), *plan.extra]
    if plan.backend == "sglang":
        return [*_sglang(plan), *plan.extra]
    return _own(plan)


def tool_parser(plan: ServePlan) -> str:
    """The backend's name for the parser of the calls that the checkpoint's template shows: Qwen's JSON or XML form.

    Of a hub id that is not on this disk the name tells; nothing is fetched.
    """
    if find_local(plan.model) is None:
        xml = any(word in plan.model.lower() for word in _XML_NAMES)
    else:
        template = load_tokenizer(plan.model).chat_template
        xml = isinstance(template, str) and "<function=" in template
    return (_XML_PARSERS if xml else _JSON_PARSERS)[plan.backend]


def client_lines(plan: ServePlan) -> list[str]:
    """Two lines of Python that talk to the server, and one for any OpenAI client."""
    return [
        "from envtune_vllm import ChatServed",
        f'model = ChatServed(model="{plan.served_name}", base_url="{plan.url}")',
        f'# or: ChatOpenAI(model="{plan.served_name}", base_url="{plan.url}/v1", api_key="none")',
    ]


def shell_line(command: Sequence[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(command)


def _vllm(plan: ServePlan) -> list[str]:
    command = [plan.python, "-m", "vllm.entrypoints.cli.main", "serve", plan.model]
    command += ["--served-model-name", plan.served_name, "--host", plan.host, "--port", str(plan.port)]
    command += ["--dtype", _DTYPES[plan.precision]]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser(plan)]
    command += ["--logprobs-mode", "processed_logprobs", "--enable-prompt-tokens-details"]
    command += ["--structured-outputs-config.backend", "guidance"]  # xgrammar reads our grammars with free whitespace
    if plan.max_context:
        command += ["--max-model-len", str(plan.max_context)]
    if plan.adapters:
        command += ["--enable-lora", "--lora-modules", *_named(plan.adapters)]
    return command


def _sglang(plan: ServePlan) -> list[str]:
    command = [plan.python, "-m", "sglang.launch_server", "--model-path", plan.model]
    command += ["--served-model-name", plan.served_name, "--host", plan.host, "--port", str(plan.port)]
    command += ["--dtype", _DTYPES[plan.precision]]
    command += ["--tool-call-parser", tool_parser(plan), "--grammar-backend", "llguidance"]
    if plan.max_context:
        command += ["--context-length", str(plan.max_context)]
    if plan.adapters:
        command += ["--enable-lora", "--lora-paths", *_named(plan.adapters)]
    return command


def _own(plan: ServePlan) -> list[str]:
    command = ["envtune", "serve", plan.model, "--host", plan.host, "--port", str(plan.port)]
    command += ["--name", plan.served_name, "--precision", plan.precision]
    if plan.max_context:
        command += ["--max-context", str(plan.max_context)]
    for adapter in _named(plan.adapters):
        command += ["--adapter", adapter]
    return command


def _named(adapters: Mapping[str, str]) -> list[str]:
    return [f"{name}={path}" for name, path in adapters.items()]
