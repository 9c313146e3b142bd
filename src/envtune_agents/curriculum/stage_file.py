"""Stages of your own, and the rule that moves between them, from a YAML file.

stages:
  - {name: warm, reward: {format: 1}, share: 0.25}
  - {name: help, hint_level: 3, categories: [baking]}
  - {name: real}
rule: {window: 4, success_band: [0.3, 0.9]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from envtune_agents.curriculum.decide import AdvanceRule
from envtune_agents.curriculum.stages import FOUR_STAGES, Stage, checked_stages
from envtune_agents.errors import CurriculumError, EnvTuneError, unknown
from envtune_agents.progress import RewardMix

T = TypeVar("T", Stage, AdvanceRule, RewardMix)


def load_stages(source: str | Path) -> tuple[Stage, ...]:
    """Stages from a YAML file, or the built-in ones for "four".

    Raises `CurriculumError` with the stage and key that is wrong.
    """
    if str(source) == "four":
        return FOUR_STAGES
    listed = _document(Path(source)).get("stages")
    if not isinstance(listed, list) or not listed:
        raise CurriculumError(f"'{source}' needs a key 'stages' with a list of at least one stage.")
    return checked_stages(_stage(f"'{source}', stage {number}", plain) for number, plain in enumerate(listed, 1))


def load_rule(source: str | Path) -> AdvanceRule:
    """The `rule` of a YAML file of stages; the default one where it has none, and for "four"."""
    if str(source) == "four":
        return AdvanceRule()
    return _made(AdvanceRule, f"'{source}', rule", _document(Path(source)).get("rule") or {})


def _document(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CurriculumError(
            f"Cannot read the stages in '{path}': {error}. Expected 'four' or a YAML file."
        ) from error
    if not isinstance(document, Mapping):
        raise CurriculumError(f"'{path}' needs a key 'stages' with a list of at least one stage.")
    for key in document:
        if key not in ("stages", "rule"):
            raise CurriculumError(f"'{path}': {unknown('key', key, ('stages', 'rule'))}")
    return document


def _stage(place: str, plain: Any) -> Stage:
    if isinstance(plain, Mapping) and "reward" in plain:
        plain = {**plain, "reward": _made(RewardMix, f"{place}, reward", plain["reward"])}
    return _made(Stage, place, plain)


def _made(kind: type[T], place: str, plain: Any) -> T:
    """The record that keys and values describe; raises `CurriculumError` with the place and what is wrong there."""
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(plain, Mapping):
        raise CurriculumError(f"{place}: expected keys and values, got {type(plain).__name__}.")
    known = [field.name for field in fields(kind)]
    for key in plain:
        if key not in known:
            raise CurriculumError(f"{place}: {unknown('key', key, known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(plain))
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first.get("ctx", {}).get("error", "")) or f"{first['msg']}, got {first['input']!r}."
        where = ".".join(map(str, first["loc"]))
        raise CurriculumError(f"{place}: {where + ': ' if where else ''}{said.replace('tuple', 'list')}") from error
    except EnvTuneError as error:
        raise CurriculumError(f"{place}: {error}") from error
