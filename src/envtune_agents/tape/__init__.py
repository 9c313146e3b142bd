"""The token tape: what a trainer reads, exactly as it was sampled.

In: a rollout, or the messages of any graph that uses a chat model with token traces. Out: branches, each one unbroken
run of tokens with a loss mask and the log-probabilities of the sampled ones. Nothing here renders or tokenises text: a
prompt that does not go on from the tokens before it opens a new branch and is counted.
"""

from envtune_agents.tape.branches import Tape, TapeBranch, TapeSpan, branches_of, tape_of, tape_of_messages
from envtune_agents.tape.check import check_tape, tape_facts, tape_problems

__all__ = [
    "Tape",
    "TapeBranch",
    "TapeSpan",
    "branches_of",
    "check_tape",
    "tape_facts",
    "tape_of",
    "tape_of_messages",
    "tape_problems",
]
