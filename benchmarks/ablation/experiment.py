"""The experiment itself: all arms and seeds trained step by step together, checkpointed, resumable at any step."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from arms import ARMS, RULE, Run, stages_of, test_sets, train_tasks, validation_tasks
from decoder import Decoder
from episodes import Workers, play_all
from learn import Optimizer, backward, group_advantages
from measures import result_of, solved_by_category, summary, worth
from packed import Adapters
from safetensors.torch import load_file, save_file
from shared_prompts import TrainRow
from subject import prepare, scripted, supervised_rows
from worker import Job, Played

from envtune_agents.curriculum import Curriculum, Evaluation, Move, Stage
from envtune_agents.errors import CurriculumError


class Experiment:
    """All runs of the ablation over one subject."""

    def __init__(self, out: Path, model: str, device: str, settings: dict[str, Any], workers: int) -> None:
        self.out, self.settings = out, settings
        out.mkdir(parents=True, exist_ok=True)
        self._check_settings(model)
        arms = [arm for arm in ARMS if arm in settings["arms"]]
        self.runs = [Run(arm, seed) for arm in arms for seed in range(settings["seeds"])]
        self.steps: int = settings["steps"]
        self.workers = Workers(workers)
        self.base, subject = prepare(out, model, device, settings, self.workers)
        self.base.pack()
        self.workers.use(subject)
        seeds = [1000 + run.seed for run in self.runs]
        self.adapters = Adapters(self.base, len(self.runs), settings["rank"], seeds)
        self.optimizer = Optimizer(self.adapters, settings["lr"])
        playing = sum(run.arm != "sft" for run in self.runs)
        self.slots = settings["slots"] or min(1024, max(playing, 1) * settings["prompts"] * settings["samples"])
        self.decoder = Decoder(self.base, self.slots, settings["context"], subject.end_ids, settings["prefill_tokens"])
        self.tasks = train_tasks(settings["train_tasks"], settings["max_turns"])
        self.validation = validation_tasks(settings["validation"])
        self.step = 0
        self._norms: dict[int, list[float]] = defaultdict(list)
        self._mixed: dict[int, list[float]] = defaultdict(list)
        self.curricula: dict[int, Curriculum] = {}
        self._expert_rows: list[TrainRow] = []
        self._resume()

    # --- state ---

    def _check_settings(self, model: str) -> None:
        """A run goes on only with the settings it began with."""
        path = self.out / "settings.json"
        now = json.loads(json.dumps({"model": Path(model).name, **self.settings}))
        free = {"slots", "prefill_tokens", "train_tokens", "steps"}
        if path.exists():
            known = json.loads(path.read_text())
            changed = [key for key in now if key not in free and known.get(key) != now[key]]
            if changed:
                raise CurriculumError(f"{self.out} holds a run with other settings: {', '.join(changed)}.")
            self.settings["steps"] = known["steps"] or self.settings["steps"]
        else:
            path.write_text(json.dumps(now, indent=1) + "\n")

    def fix_steps(self, steps: int) -> None:
        """Decides the budget once, when it was left open."""
        self.steps = self.settings["steps"] = steps
        path = self.out / "settings.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "steps": steps}, indent=1) + "\n")
        self._make_curricula()

    def _make_curricula(self) -> None:
        prompts, samples = self.settings["prompts"], self.settings["samples"]
        folder = self.out / "curriculum"
        self.curricula = {
            index: Curriculum(stages_of(run.arm, self.steps, prompts, samples), RULE, path=folder / f"{run.name}.json")
            for index, run in enumerate(self.runs)
            if run.arm != "sft"
        }

    def _resume(self) -> None:
        state = self.out / "state.safetensors"
        if self.steps:
            self._make_curricula()
        if not state.exists():
            return
        tensors = load_file(state)
        self.adapters.load({name.removeprefix("adapter."): t for name, t in tensors.items() if name[:8] == "adapter."})
        self.optimizer.load({name.removeprefix("adam."): t for name, t in tensors.items() if name[:5] == "adam."})
        progress = json.loads((self.out / "state.json").read_text())
        self.step = progress["step"]
        self._norms.update({int(k): v for k, v in progress["norms"].items()})
        self._mixed.update({int(k): v for k, v in progress["mixed"].items()})
        for name in ("metrics", "evaluations"):
            _cut(self.out / f"{name}.jsonl", self.step)
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        tensors = {f"adapter.{name}": t.contiguous() for name, t in self.adapters.state().items()}
        tensors |= {f"adam.{name}": t.contiguous() for name, t in self.optimizer.state().items()}
        part = self.out / "state.part"
        save_file(tensors, part)
        progress = {"step": self.step, "norms": self._norms, "mixed": self._mixed}
        (self.out / "state.json.part").write_text(json.dumps(progress))
        os.replace(part, self.out / "state.safetensors")
        os.replace(self.out / "state.json.part", self.out / "state.json")

    # --- training ---

    def stage(self, run: int) -> Stage | None:
        curriculum = self.curricula.get(run)
        if curriculum is None:
            return None
        return curriculum.stage or curriculum.stages[-1]

    def train_step(self) -> None:
        """One step of every run: episodes in one batch, then one update."""
        started = time.perf_counter()
        jobs, runs = self._jobs()
        self.decoder.begin(self.adapters, runs)
        before = self.decoder.decoded, self.decoder.iterations
        played = {item.key: item for item in play_all(self.workers, jobs, self.decoder, self.slots)}
        played_s = time.perf_counter() - started
        rows, notes = self._rows(jobs, runs, played)
        rows += self._supervised()
        learned = backward(self.base, self.adapters, rows, self.settings["train_tokens"])
        norms = self.optimizer.step()
        self.step += 1
        took = time.perf_counter() - started
        for index, run in enumerate(self.runs):
            stage = self.stage(index)
            self._norms[index].append(norms[index])
            self._write(
                "metrics",
                {
                    "step": self.step,
                    "run": run.name,
                    "stage": stage.name if stage else "sft",
                    "grad_norm": norms[index],
                    "kl": learned.kl[index],
                    "entropy": learned.entropy[index],
                    "mismatch": learned.mismatch[index],
                    **notes.get(index, {}),
                },
            )
        rewards = mean(note["progress"] for note in notes.values()) if notes else 0.0
        print(
            f"step {self.step}/{self.steps or '?'}: {took:.1f} s (play {played_s:.1f}), progress {rewards:.3f}, "
            f"{self.decoder.decoded - before[0]} tokens in {self.decoder.iterations - before[1]} iterations, "
            f"{learned.tokens} tokens trained",
            flush=True,
        )

    def _jobs(self) -> tuple[list[Job], list[int]]:
        jobs: list[Job] = []
        runs: list[int] = []
        for index, run in enumerate(self.runs):
            stage = self.stage(index)
            if stage is None:
                continue
            tasks = stage.tasks(self.tasks, seed=run.seed)
            random = Random(f"{run.seed}/{stage.name}/{self.step}")
            for task in random.sample(tasks, k=min(stage.prompts, len(tasks))):
                for sample in range(stage.samples):
                    seed = self.step * 1000 + sample
                    jobs.append(self._job(len(jobs), task, stage.hint_level, 1.0, seed))
                    runs.append(index)
        return jobs, runs

    def _job(self, key: int, task: Any, level: int, temperature: float, seed: int = 0) -> Job:
        return Job(key, task, level, temperature, self.settings["max_new"], self.settings["max_steps"], "", seed)

    def _rows(
        self, jobs: Sequence[Job], runs: Sequence[int], played: dict[int, Played]
    ) -> tuple[list[TrainRow], dict[int, dict[str, Any]]]:
        groups: dict[tuple[int, str], list[Played]] = defaultdict(list)
        for job, run in zip(jobs, runs, strict=True):
            item = played[job.key]
            if item.progress is not None:
                groups[run, job.task.task_id].append(item)
        rows: list[TrainRow] = []
        mixed: dict[int, list[bool]] = defaultdict(list)
        rewards: dict[int, list[float]] = defaultdict(list)
        for (run, _), items in groups.items():
            stage = self.stage(run)
            assert stage is not None
            values = [worth(stage, item) for item in items]
            rewards[run] += values
            mixed[run].append(max(values) - min(values) > 1e-6)
            for item, advantage in zip(items, group_advantages(values), strict=True):
                rows += [TrainRow(run, *row, advantage=advantage) for row in item.rows]
        for run, flags in mixed.items():
            self._mixed[run].append(mean(flags))
        members: dict[int, list[Played]] = defaultdict(list)
        for job, run in zip(jobs, runs, strict=True):
            members[run].append(played[job.key])
        notes = {
            run: {"reward": mean(rewards[run]), "mixed": mean(mixed[run]), **summary(items)}
            for run, items in members.items()
            if rewards[run]
        }
        return rows, notes

    def _supervised(self) -> list[TrainRow]:
        """As many expert rows for each supervised run as a step has episodes."""
        wanted = [index for index, run in enumerate(self.runs) if run.arm == "sft"]
        if not wanted:
            return []
        if not self._expert_rows:
            self._expert_rows = supervised_rows(scripted(self.workers, "expert", self.tasks, [0]))
        rows = []
        for index in wanted:
            random = Random(f"{self.runs[index].seed}/{self.step}")
            for row in random.sample(self._expert_rows, k=self.settings["prompts"] * self.settings["samples"]):
                rows.append(TrainRow(index, row.prompt, row.completion, row.mask, row.logprobs, 0.0, supervised=True))
        return rows

    # --- evaluation ---

    def evaluate(self) -> None:
        """Greedy validation of every run, without hints; the curricula decide."""
        scores = self.play(self.validation, range(len(self.runs)), level=0)
        for index, items in scores.items():
            measured = summary(items)
            name = self.runs[index].name
            curriculum = self.curricula.get(index)
            decision = None
            if curriculum is not None and curriculum.stage is not None:
                done = sum(1 for _ in self._norms[index])
                before = self._stage_start(index)
                decision = curriculum.observe(
                    Evaluation(
                        step=self.step - before,
                        score=measured["solved"],
                        grad_norms=tuple(self._norms[index][-self.settings["evaluate_every"] :]) if done else (),
                        mixed_groups=mean(self._mixed[index][-5:]) if self._mixed[index] else None,
                    )
                )
                if decision.move in (Move.ADVANCE, Move.FINISH):
                    print(f"{name}: {decision}", flush=True)
            self._write(
                "evaluations",
                {
                    "step": self.step,
                    "run": name,
                    **measured,
                    "categories": solved_by_category(items),
                    "decision": str(decision) if decision else "",
                },
            )
        by_arm = {
            arm: mean(summary(items)["solved"] for i, items in scores.items() if self.runs[i].arm == arm)
            for arm in dict.fromkeys(run.arm for run in self.runs)
        }
        print(f"validation at step {self.step}: {by_arm}", flush=True)

    def _stage_start(self, index: int) -> int:
        """The step at which the run's stage began: the sum of the steps of the stages before it."""
        curriculum = self.curricula[index]
        return sum(d.step for d in curriculum.decisions if d.move is Move.ADVANCE)

    def play(
        self, tasks: Sequence[Any], runs: Sequence[int], level: int, adapters: bool = True
    ) -> dict[int, list[Played]]:
        """Greedy episodes of all `tasks` by all `runs`."""
        pairs = [(task, run) for task in tasks for run in runs]
        found: dict[int, list[Played]] = {run: [] for run in runs}
        slots = self.slots
        for start in range(0, len(pairs), slots):
            chunk = pairs[start : start + slots]
            jobs = [self._job(key, task, level, 0.0) for key, (task, _) in enumerate(chunk)]
            self.decoder.begin(self.adapters if adapters else None, [run for _, run in chunk])
            for item in play_all(self.workers, jobs, self.decoder, slots):
                found[chunk[item.key][1]].append(item)
        return found

    def baseline(self) -> None:
        """The warmed-up subject before any training, without and with hints, on every set."""
        path = self.out / "baseline.json"
        if path.exists():
            return
        table = {}
        for name, tasks in {"validation": self.validation, **test_sets(self.settings["test"])}.items():
            for level in (0, 3):
                items = self.play(tasks, [0], level, adapters=False)[0]
                table[f"{name}/{level}"] = result_of(items)
                print(
                    f"before training, {name}, hints {level}: solved {table[f'{name}/{level}']['solved']:.3f}",
                    flush=True,
                )
        path.write_text(json.dumps(table) + "\n")

    def final(self) -> None:
        """Every run on every test set without hints, and on the held-out tasks with hints."""
        path = self.out / "final.json"
        table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        sets = [(name, tasks, 0) for name, tasks in test_sets(self.settings["test"]).items()]
        sets.append(("held_out", sets[0][1], 3))
        for name, tasks, level in sets:
            key = f"{name}/{level}"
            if key in table:
                continue
            table[key] = {
                self.runs[run].name: result_of(items)
                for run, items in self.play(tasks, range(len(self.runs)), level).items()
            }
            print(f"final, {key}: " + ", ".join(f"{n} {v['solved']:.2f}" for n, v in table[key].items()), flush=True)
            path.write_text(json.dumps(table) + "\n")

    def save_adapters(self, folder: Path, arms: Sequence[str]) -> None:
        """The adapters of some arms in bf16, one file for each run."""
        for index, run in enumerate(self.runs):
            if run.arm in arms:
                tensors = {name: t[index].bfloat16().contiguous().cpu() for name, t in self.adapters.state().items()}
                save_file(tensors, folder / f"{run.name}.safetensors", {"scale": str(self.adapters.scale)})

    def _write(self, name: str, record: dict[str, Any]) -> None:
        with (self.out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def _cut(path: Path, step: int) -> None:
    """Drops what was written after the saved step."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    path.write_text("".join(kept))
