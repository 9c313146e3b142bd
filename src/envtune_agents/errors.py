"""Everything this library raises, as one tree.

    EnvTuneError
    ├── MissingDependencyError (ImportError)   an optional package is not installed; the text holds the install line
    ├── WeightsError (ValueError)              a checkpoint cannot be loaded as asked
    │   └── ContextOverflowError               a prompt does not fit the model's context
    ├── RequestError (ValueError)               a generation request is malformed: no prompt, a setting out of range
    ├── EngineError (RuntimeError)             an engine was asked for something after it closed, or in a forked process
    ├── ServerError (ConnectionError)          a model server cannot be reached or started, or answers nonsense
    ├── MessageError (ValueError)              a conversation cannot be turned into a prompt
    ├── ConstraintError (ValueError)           tools or a schema cannot be turned into a decoding constraint
    ├── TaskError (ValueError)                 unknown category, split, task id, tool parser …
    ├── EnvironmentStateError (RuntimeError)   an environment was used out of order
    ├── ScorerError (RuntimeError)             a progress scorer raised or left [0, 1]
    ├── HintRuleError (ValueError)             a hint rule or dial is malformed
    ├── ContractError (AssertionError)         an environment, rule or scorer breaks what training relies on
    ├── CurriculumError (ValueError)           a stage, curriculum or its saved state is malformed
    ├── FilterError (ValueError)               a filter over rollouts does not parse
    ├── CollectionError (RuntimeError)         nobody is left who could play the episodes of a run
    └── RecordError (ValueError)               a rollout file or record cannot be read or written

Every error also inherits the standard library type it refines, so `except ValueError` keeps working. The text says what
was wanted, what was found and the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class EnvTuneError(Exception):
    """Base of every error this library raises on purpose."""


class MissingDependencyError(EnvTuneError, ImportError):
    """An optional dependency is missing; the message is the line that installs it."""


class WeightsError(EnvTuneError, ValueError):
    """A checkpoint is missing, pickled, of an unknown architecture, or does not fit the request."""


class ContextOverflowError(WeightsError):
    """A prompt holds more tokens than the model's context admits."""


class RequestError(EnvTuneError, ValueError):
    """A generation request cannot be served as it is: no prompt, an unknown token, a setting out of its range."""


class EngineError(EnvTuneError, RuntimeError):
    """An engine was closed, or belongs to the process this one was forked from."""


class ServerError(EnvTuneError, ConnectionError):
    """A model server cannot be reached or started, breaks off, or answers what no model server should."""


class MessageError(EnvTuneError, ValueError):
    """A conversation cannot be turned into a prompt: empty, not text, or refused by the chat template."""


class ConstraintError(EnvTuneError, ValueError):
    """Tools, a tool choice or a response schema cannot be turned into a decoding constraint."""


class TaskError(EnvTuneError, ValueError):
    """A task, category, split or option does not exist; the message lists what does."""


class EnvironmentStateError(EnvTuneError, RuntimeError):
    """An environment was asked for something out of order, such as closing a turn that is not open."""


class ScorerError(EnvTuneError, RuntimeError):
    """A progress scorer raised, or returned a value outside [0, 1]."""


class HintRuleError(EnvTuneError, ValueError):
    """A hint rule or dial is malformed."""


class ContractError(EnvTuneError, AssertionError):
    """An environment, hint rule or scorer breaks a promise that training and evaluation rely on; the text lists all."""


class CurriculumError(EnvTuneError, ValueError):
    """A stage or curriculum is malformed, or its saved state belongs to another one."""


class FilterError(EnvTuneError, ValueError):
    """A filter over rollouts does not parse, names something unknown, or does not fit the records."""


class CollectionError(EnvTuneError, RuntimeError):
    """A collection cannot go on: its workers are gone, or their models differ."""


class RecordError(EnvTuneError, ValueError):
    """A rollout record or file cannot be read, written or resumed."""


def require(module: str, *, feature: str, install: str) -> ModuleType:
    """The imported `module`, or a `MissingDependencyError` that names the install line.

    `feature` completes the sentence "… needs …" for the reader; `install` is the command to run.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingDependencyError(
            f"{feature} needs the package '{missing}', which is not installed. Install it with:\n  {install}"
        ) from error


def unknown(what: str, got: object, known: Iterable[object]) -> str:
    """The message for a name that does not exist: `Unknown category 'base2'. Known: base, …`."""
    return f"Unknown {what} {str(got)!r}. Known: {', '.join(str(name) for name in known)}."
