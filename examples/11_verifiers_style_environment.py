"""A verifiers-style environment under `evaluate`: rows with answers, a state, an `env_response`, a rubric of functions.

The upper half stands for such an environment, the lower half adapts any of that shape by reading the agent's replies.
"""

from envtune_agents import Task, TurnEvidence, evaluate
from envtune_agents.testing import ScriptedChatModel

ROWS = [{"prompt": [{"role": "user", "content": "My number is 1 to 100."}], "answer": n} for n in (37, 68, 50)]


class GuessingEnv:
    max_turns = 3

    def setup_state(self, state):
        state.update(found=False, turn=0)

    def is_completed(self, messages, state):
        return state["found"] or state["turn"] >= self.max_turns

    def env_response(self, messages, state):
        guess, answer = int(messages[-1]["content"]), state["answer"]
        state.update(found=guess == answer, turn=state["turn"] + 1)
        return [{"role": "user", "content": "higher" if guess < answer else "lower"}]

    def found_it(self, completion, state):
        return float(state["found"])


class Adapted:
    def __init__(self, task):
        self.task, self.env, self.messages, self.turn = task, GuessingEnv(), [], -1
        self.state, self.pending = dict(task.data), task.data["prompt"]
        self.env.setup_state(self.state)

    def open_turn(self):
        if self.messages and self.env.is_completed(self.messages, self.state):
            return None
        self.messages, self.turn = self.messages + self.pending, self.turn + 1
        return self.pending[-1]["content"]

    def tools(self):
        return []

    def read_reply(self, text):
        self.messages.append({"role": "assistant", "content": text})
        self.pending = self.env.env_response(self.messages, self.state)

    def close_turn(self):
        rubric = {"found_it": self.env.found_it(self.messages, self.state) == 1.0}
        return TurnEvidence(self.turn, rubric, judged=self.env.is_completed(self.messages, self.state))


tasks = [Task(f"guess_{row['answer']}", "games", ("guess",) * 3, row) for row in ROWS]
print(evaluate(ScriptedChatModel(script=["50", "25", "37"]), tasks, Adapted))

# Expected output:
# category  correct  total  accuracy  95% interval  turns solved
# games           2      3    66.67%    20.8–93.9%         85.7%
# OVERALL         2      3    66.67%    20.8–93.9%         85.7%
