"""What the deployment is told by its environment variables, read once and checked before anything is served."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from envtune_agents.errors import TaskError


@dataclass(frozen=True, slots=True)
class Settings:
    """One deployment. Each field is the environment variable ENVTUNE_<FIELD>; PORT and HOST go by these names."""

    model: str = "smollm2"
    """A folder, a GGUF file, a hub id, or the demo model "smollm2"."""
    precision: str = "auto"
    """See `ChatTransformers`."""
    temperature: float = 0.7
    """0 is greedy."""
    max_tokens: int = 512
    """Most tokens of one reply."""
    hint_level: int = 3
    """0 to 3; 0 leaves every answer of a tool as it is."""
    stage: str = "serving"
    """What traces and logs are told apart by, such as "canary"."""
    concurrency: int = 4
    """Runs that play at the same time; further ones wait in the server's queue."""
    log_text: bool = False
    """Whether arguments and answers of tools are logged and traced."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 2024
    """The port to listen on."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings that `environment` holds; raises `TaskError` for what cannot be meant."""
        texts = {field.name: environment.get(_variable(field.name), "").strip() for field in fields(cls)}
        return cls(**{name: _value(name, text) for name, text in texts.items() if text})


_RANGES = {
    "temperature": (0, 5),
    "max_tokens": (1, 1_000_000),
    "hint_level": (0, 3),
    "concurrency": (1, 1_000),
    "log_text": (0, 1),
    "port": (1, 65_535),
}


def _variable(field: str) -> str:
    return field.upper() if field in ("host", "port") else f"ENVTUNE_{field.upper()}"


def _value(field: str, text: str) -> Any:
    if field not in _RANGES:
        return text
    least, most = _RANGES[field]
    try:
        number = float(text) if field == "temperature" else int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        kind = "a number" if field == "temperature" else "a whole number"
        raise TaskError(f"{_variable(field)} is {text!r}. Wanted: {kind} from {least} to {most}.")
    return bool(number) if field == "log_text" else number
