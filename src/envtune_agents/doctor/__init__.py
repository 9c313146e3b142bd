"""What is installed here, whether it fits together, what works, and what to install for what you want.

Comes in: nothing but this Python environment. Goes out: a `Diagnosis` of plain values. It reads the metadata of
installed distributions and imports none of them, unless it is asked to probe; it installs and changes nothing.
"""

from envtune_agents.doctor.diagnosis import Diagnosis, Problem, diagnose
from envtune_agents.doctor.features import Feature, Package
from envtune_agents.doctor.machine import Gpu, Machine
from envtune_agents.doctor.probes import Probe

__all__ = ["Diagnosis", "Feature", "Gpu", "Machine", "Package", "Probe", "Problem", "diagnose"]
