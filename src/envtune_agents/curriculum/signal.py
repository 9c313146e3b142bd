"""Does training teach anything? GRPO learns from the differences inside a group, and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Silence:
    """Training steps in a row in which every group's rewards were equal, so that nothing was learnt."""

    step: int
    """The last of them."""
    steps: int
    """How many there were in a row."""
    reward: float
    """Mean reward of the last of them."""
    cold: bool
    """True when the stage has taught nothing since it began and every reward was 0: the model cannot begin."""

    def __str__(self) -> str:
        if self.steps == 1:
            said = f"step {self.step}: every group's rewards are equal, so this step teaches nothing."
        else:
            first = self.step - self.steps + 1
            said = f"steps {first} to {self.step}: every group's rewards are equal, so they teach nothing."
        return f"{said} {'All of them are 0: the model earns no reward yet.' if self.cold else ''}".strip()

    def advice(self, cold_start: str) -> str:
        """The next step; `cold_start` is the trainer's own advice for a model that cannot begin."""
        if self.cold:
            return f"{cold_start} Or raise the hint level, or take easier tasks."
        return "If it stays so at the top, go on or take harder tasks; at 0, raise the hint level or take easier ones."


@dataclass(slots=True)
class LearningSignal:
    """Watches the steps of one stage for groups that differ.

        signal = LearningSignal()
        silence = signal.observe(1, mixed_groups=0.0, reward=0.0)
        print(silence)          # step 1: every group's rewards are equal, so this step teaches nothing. …

    A model that cannot call tools yet shows as `patience` cold steps in a row: `finding` gives them once (ours).
    """

    patience: int = 3
    """Steps in a row that make a finding; fewer are luck."""
    _silent: int = 0
    _cold: bool = True
    _found: bool = False

    def observe(self, step: int, mixed_groups: float, reward: float) -> Silence | None:
        """What one training step showed: `mixed_groups` is the share of groups that differ; None when one does."""
        if mixed_groups > 0:
            self._silent, self._cold, self._found = 0, False, False
            return None
        self._silent += 1
        self._cold = self._cold and reward == 0
        return Silence(step, self._silent, reward, self._cold)

    def finding(self, silence: Silence) -> bool:
        """True once for each time that the steps in a row reach `patience`."""
        if self._found or silence.steps < self.patience:
            return False
        self._found = True
        return True
