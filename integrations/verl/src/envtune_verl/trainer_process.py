"""One run of a stage's script: started, followed while its metrics come in, and explained when it fails."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from envtune_agents.errors import CurriculumError
from envtune_verl.log import LoggedStep, read_log
from envtune_verl.settings import VerlSettings

POLL_S = 0.5
"""Seconds between two looks at the metrics."""
_OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory")
_NO_CACHE = ("No available memory for the cache blocks", "larger than the available KV cache memory")
"""What vLLM says when its share of the memory does not hold the weights and one whole conversation."""
_KEYS = (
    "On the command line: --override actor_rollout_ref.rollout.gpu_memory_utilization=…, --override "
    "actor_rollout_ref.actor.fsdp_config.param_offload=True (and optimizer_offload), --override "
    "actor_rollout_ref.rollout.tensor_model_parallel_size=…. The same command then goes on from the last checkpoint."
)
_TAIL = 4_000


@contextmanager
def only_trainer(folder: Path) -> Iterator[int]:
    """A lock that this process and the trainer it starts hold; gives its file descriptor for the trainer.

    So a trainer that outlived a killed controller is noticed instead of being started twice on the same GPUs. Raises
    `CurriculumError` then.
    """
    descriptor = os.open(folder / "trainer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CurriculumError(
                f"Something still trains in {folder}. Wait until it is done or end it, then run the same command again."
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def run_script(
    command: Sequence[str],
    output: Path,
    lock: int,
    settings: VerlSettings,
    metrics: Path | None = None,
    on_step: Callable[[LoggedStep], None] | None = None,
) -> None:
    """Runs a command to its end with its output in a file; `on_step` is told each line that `metrics` gets.

    Raises `CurriculumError` with the end of the output when it fails, and with what to turn when memory ran out.
    """
    position = 0
    with output.open("ab") as sink:
        process = subprocess.Popen(
            list(command), stdout=sink, stderr=subprocess.STDOUT, pass_fds=(lock,), start_new_session=True
        )
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
            ended = process.poll() is not None
            if metrics is not None and on_step is not None:
                lines, position = read_log(metrics, position)
                for line in lines:
                    on_step(line)
            if ended:
                break
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        raise CurriculumError(_why(command, process.returncode, output, settings))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started; Ray's workers go with their driver."""
    for sign, patience_s in ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return


def _why(command: Sequence[str], code: int, output: Path, settings: VerlSettings) -> str:
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 200_000))
        text = file.read().decode("utf-8", "replace")
    if any(word in text for word in _NO_CACHE):
        return (
            f"The servers' share of a GPU is too small for the weights and one conversation; see {output}. Turn "
            f"gpu_memory up (now {settings.gpu_memory}) or tensor_parallel up (now {settings.tensor_parallel}). {_KEYS}"
        )
    if any(word in text for word in _OUT_OF_MEMORY):
        return (
            f"Memory ran out on a GPU; see {output}. Turn, in this order: gpu_memory down (now {settings.gpu_memory}), "
            f"offload on (now {settings.offload}), tensor_parallel up (now {settings.tensor_parallel}), the stage's "
            f"max_response_tokens down. {_KEYS}"
        )
    return (
        f"The trainer ended with code {code}; its whole output is in {output}. The same command goes on from the last "
        f"checkpoint. The last lines:\n{text[-_TAIL:].strip() or '(nothing)'}\nThe command: {' '.join(command)}"
    )
