"""The optional fourth layer: a chat model writes hints, another judges them, a person reviews what is left.

In: a run, its tasks, two LangChain chat models. Out: a YAML file of rules, each with its provenance in comments and a
TODO for the reviewer. The writer never sees the ground truth; the judge does, to reject what leaks it, and nothing it
says goes back to the writer. Nothing goes live from here: only `load_rules` on a reviewed file makes rules.

`case` gathers what a writer may see, `constitution` holds the words for both models, `replies` reads theirs, `write`
does the rounds and `drafts` the file.
"""

from envtune_agents.hint_writer.case import HintCase, case_of, truth_of
from envtune_agents.hint_writer.constitution import judge_messages, writer_messages
from envtune_agents.hint_writer.drafts import written_rules
from envtune_agents.hint_writer.replies import Draft, Judgement, read_draft, read_judgement
from envtune_agents.hint_writer.write import Fate, WrittenHint, write_hints

__all__ = [
    "Draft",
    "Fate",
    "HintCase",
    "Judgement",
    "WrittenHint",
    "case_of",
    "judge_messages",
    "read_draft",
    "read_judgement",
    "truth_of",
    "write_hints",
    "writer_messages",
    "written_rules",
]
