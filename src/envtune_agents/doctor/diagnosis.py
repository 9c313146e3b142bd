"""`diagnose`: all findings together, and what is wrong among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from envtune_agents.doctor.features import CORE, Feature, conflicts, features, in_range, installed_version
from envtune_agents.doctor.machine import Machine, this_machine
from envtune_agents.doctor.probes import GPU_PROBE, Probe, run_probes
from envtune_agents.weights.memory import MemoryNeed, MemoryReport, memory_report


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is broken, not merely absent."""

    what: str
    """One sentence."""
    next_step: str
    """The command or advice that mends it."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What there is, what works and what to do."""

    version: str
    """Version of this library."""
    machine: Machine
    features: tuple[Feature, ...]
    problems: tuple[Problem, ...]
    probes: tuple[Probe, ...] | None
    """None when nothing was tried."""
    memory: MemoryReport | None
    """What the asked model needs; None when none was asked for."""

    @property
    def healthy(self) -> bool:
        """True when the core is there and nothing that is installed is broken."""
        return not self.problems

    def fits(self, need: MemoryNeed) -> str:
        """Where the model of `memory` goes at this precision: "GPU", "CPU", "nowhere here", or "unknown".

        Against one GPU's or the machine's whole memory, with 1.5 GB left for torch and the work of one step.
        """
        wanted = need.total + 1_500_000_000
        if any(wanted <= gpu.memory_bytes for gpu in self.machine.gpus):
            return "GPU"
        if self.machine.memory_bytes is None:
            return "unknown"
        return "CPU" if wanted <= self.machine.memory_bytes else "nowhere here"

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        found = asdict(self)
        for plain, feature in zip(found["features"], self.features, strict=True):
            plain["state"] = feature.state
        if self.memory is not None:
            for plain, need in zip(found["memory"]["needs"], self.memory.needs, strict=True):
                plain |= {"total": need.total, "fits": self.fits(need)}
        return {"healthy": self.healthy, **found}


def diagnose(*, model: str | None = None, context: int | None = None, probe: bool = False) -> Diagnosis:
    """The state of this environment.

    `model`: estimate the memory of this checkpoint too, with `context` tokens (all it admits by default). `probe`: run
    tiny checks, which imports torch and whatever else is installed. Raises `WeightsError` when there is no such model.
    """
    import envtune_agents

    memory = memory_report(model, context=context) if model is not None else None
    machine, found = this_machine(), features()
    probes = run_probes() if probe else None
    problems = [
        *_python(machine),
        *_versions(found),
        *_mixed(),
        *_failed(probes or (), found),
        *_unseen(probes or (), machine),
    ]
    return Diagnosis(
        version=envtune_agents.__version__,
        machine=machine,
        features=tuple(found),
        problems=tuple(problems),
        probes=None if probes is None else tuple(probes),
        memory=memory,
    )


def _python(machine: Machine) -> list[Problem]:
    try:
        wanted = str(metadata(CORE)["Requires-Python"] or "")
    except PackageNotFoundError:
        return []
    if in_range(machine.python, wanted):
        return []
    return [Problem(f"This is Python {machine.python}; {CORE} wants {wanted}.", "Make a new environment with it.")]


def _versions(found: Sequence[Feature]) -> list[Problem]:
    return [
        Problem(_complaint(feature), feature.install)
        for feature in found
        if feature.state == "broken" and (feature.name == "core" or feature.present)
    ]


def _complaint(feature: Feature) -> str:
    wrong = [
        f"{package.name} {package.found} (wanted {package.wanted})" if package.found else f"{package.name} (missing)"
        for package in feature.packages
        if not package.fits and (package.found or feature.required)
    ]
    return f"{feature.name}: {', '.join(wrong)}."


def _mixed() -> list[Problem]:
    return [Problem(what, next_step) for what, next_step in conflicts()]


def _failed(probes: Sequence[Probe], found: Sequence[Feature]) -> list[Problem]:
    """Probes that failed although their packages are there."""
    install = {feature.name: feature.install for feature in found}
    return [
        Problem(f"{probe.name}: {probe.says}", f"{install.get(probe.feature, install['core'])} --force-reinstall")
        for probe in probes
        if probe.works is False
    ]


def _unseen(probes: Sequence[Probe], machine: Machine) -> list[Problem]:
    """A GPU that the driver lists and torch does not see: nearly always a torch built for the CPU."""
    blind = any(probe.name == GPU_PROBE and probe.works is None for probe in probes)
    if not (blind and machine.gpus and (version := installed_version("torch"))):
        return []
    return [
        Problem(
            f"The driver lists {machine.gpus[0].name}, but torch {version} sees no GPU: it is built for the "
            "CPU, or for a newer driver.",
            "Install the torch that https://pytorch.org/get-started/locally names for your driver.",
        )
    ]
