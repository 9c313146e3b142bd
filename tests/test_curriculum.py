from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from envtune_agents.curriculum import (
    FOUR_STAGES,
    AdvanceRule,
    Curriculum,
    DifficultyController,
    Evaluation,
    LearningSettings,
    LearningSignal,
    Move,
    Solved,
    Stage,
    check_unchanged,
    check_version,
    checkpoint_digest,
    load_rule,
    load_stages,
    run_identity,
    task_digest,
    write_card,
)
from envtune_agents.errors import CurriculumError, HintRuleError, MissingDependencyError, TaskError
from envtune_agents.hints import HintDial, HintEngine
from envtune_agents.playground import PLAYGROUND_RULES, Playground, generated_tasks
from envtune_agents.progress import BINARY_REWARD, FORMAT_REWARD, PROGRESS_REWARD, RewardMix
from envtune_agents.rollout import run_directly, run_episode
from envtune_agents.task_source import find_task_source
from envtune_agents.testing import ScriptedChatModel

TASKS = generated_tasks(0, 40)
SENDS_UNSIGNED = '<tool_call>\n{"name": "send_message", "arguments": {"contact_id": "c1", "text": "x"}}\n</tool_call>'


# --- stages ---


def test_the_four_stages_differ_pairwise_in_what_they_train() -> None:
    for one, two in itertools.combinations(FOUR_STAGES, 2):
        assert replace(one, name="x") != replace(two, name="x")
    assert [stage.augmented for stage in FOUR_STAGES] == [False, True, True, False]
    assert [stage.reward for stage in FOUR_STAGES] == [FORMAT_REWARD, PROGRESS_REWARD, PROGRESS_REWARD, PROGRESS_REWARD]
    assert [stage.max_response_tokens for stage in FOUR_STAGES] == [10_000, 10_000, 24_576, 24_576]


def test_a_stages_tasks_are_its_categories_and_its_share() -> None:
    one, two, three, four = (stage.tasks(TASKS) for stage in FOUR_STAGES)
    assert len(one) == 10
    assert {task.category for task in two} == {"base"}
    assert three == four == TASKS
    assert FOUR_STAGES[0].tasks(TASKS) == one
    assert FOUR_STAGES[0].tasks(TASKS, seed=1) != one
    with pytest.raises(CurriculumError, match="none of the 40 tasks"):
        Stage("x", categories=("baking",)).tasks(TASKS)


@pytest.mark.parametrize("stage", FOUR_STAGES, ids=lambda stage: stage.name)
async def test_hints_show_in_augmented_stages_only_and_the_denominator_is_the_tasks_turns(stage: Stage) -> None:
    task = next(task for task in TASKS if task.data["domain"] == "mail" and len(task.turns) > 1)
    model = ScriptedChatModel(script=[SENDS_UNSIGNED] * 3)
    hints = HintEngine(PLAYGROUND_RULES, HintDial(stage.hint_level))
    rollout = await run_episode(model, Playground(task), hints=hints, max_steps=2, stage=stage.name)
    outcomes = [outcome for turn in rollout.turns for step in turn.steps for outcome in step.outcomes]
    assert outcomes
    assert all((outcome.hint is not None) == stage.augmented for outcome in outcomes)
    assert all((outcome.content == outcome.raw_content) != stage.augmented for outcome in outcomes)
    assert rollout.n_turns == len(task.turns)
    scored = [turn.score.value for turn in rollout.turns if turn.score]
    assert rollout.reward == sum(scored) / len(task.turns)


def test_stages_of_ones_own_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(
        "stages:\n  - {name: warm, reward: {format: 1}, share: 0.5}\n"
        "  - {name: help, hint_level: 2, categories: [base], max_steps: 7}\n"
    )
    assert load_stages(file) == (
        Stage("warm", RewardMix(format=1), share=0.5),
        Stage("help", hint_level=2, categories=("base",), max_steps=7),
    )
    assert load_stages("four") is FOUR_STAGES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: []", "at least one stage"),
        ("stages: [{name: a, hints: 3}]", "Unknown key 'hints'"),
        ("stages: [{name: a, hint_level: 4}]", "stage 1: A hint level"),
        ("stages: [{name: a, reward: {speed: 1}}]", "speed"),
        ("stages: [{name: a}, {name: a}]", "used twice: a"),
        ("stages: [{name: a, share: 0}]", "share lies in"),
        ("stages: [3]", "expected keys"),
        ("stages: [", "Cannot read"),
        ("stages: [{name: a, categories: baking}]", "stage 1: categories: .* list, got 'baking'"),
        ("stages: [{name: a}, {name: b, samples: many}]", "stage 2: samples: .* integer.*, got 'many'"),
        ("stages: [{name: a, reward: 3}]", "stage 1, reward: expected keys and values, got int"),
        ("stages: [{name: a, reward: {progress: 0}}]", "stage 1, reward: .* at least one of them not 0"),
        ("stages: [{name: a/b}]", "becomes a folder"),
        ("stages: [{name: a}]\nrules: {window: 2}", "Unknown key 'rules'. Known: stages, rule"),
        ("stages: [{name: a}]\nrule: {window: 0}", "rule: window of a rule is 0; wanted: at least 1"),
        ("stages: [{name: a}]\nrule: {success_band: [0.8, 0.2]}", "rule: success_band"),
        ("- a", "needs a key 'stages'"),
    ],
)
def test_a_bad_stage_file_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text(text)
    with pytest.raises(CurriculumError, match=message):
        load_stages(file), load_rule(file)


def test_a_rule_of_ones_own_stands_beside_the_stages(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text("stages: [{name: a}]\nrule: {window: 2, success_band: [0.3, 0.9]}\n")
    assert load_rule(file) == AdvanceRule(window=2, success_band=(0.3, 0.9))
    assert load_rule("four") == AdvanceRule()


def test_impossible_stages_are_refused() -> None:
    with pytest.raises(CurriculumError, match="at least 2"):
        Stage("a", samples=1)
    with pytest.raises(HintRuleError):
        Stage("a", hint_level=9)
    with pytest.raises(CurriculumError, match="at least one stage"):
        Curriculum(())


# --- decisions on recorded curves ---


def decide(scores: list[float], rule: AdvanceRule, norms: list[float] | None = None) -> list[Move]:
    """The moves of one stage, until it is left."""
    curriculum = Curriculum((Stage("only"),), rule)
    moves = []
    for index, score in enumerate(scores):
        norm = norms[index] if norms else 0.5
        moves.append(curriculum.observe(Evaluation(10 * (index + 1), score, (norm, norm * 1.1))).move)
        if moves[-1] is not Move.STAY:
            break
    return moves


RISE = [0.1, 0.2, 0.3, 0.38, 0.44, 0.48]
PLATEAU = [0.50, 0.51, 0.505, 0.50, 0.508, 0.503, 0.506, 0.51]


def test_it_stays_while_the_score_rises_and_leaves_at_the_plateau() -> None:
    moves = decide(RISE + PLATEAU, AdvanceRule())
    assert moves[-1] is Move.FINISH
    assert len(RISE) + 2 < len(moves) <= len(RISE) + len(PLATEAU)
    assert Move.FINISH not in decide(RISE, AdvanceRule())


@pytest.mark.parametrize("seed", range(5))
def test_noise_as_wide_as_the_validation_sets_does_not_end_a_rise(seed: int) -> None:
    random = Random(seed)
    rise = [0.1 + 0.04 * step + random.gauss(0, 0.02) for step in range(15)]
    assert set(decide(rise, AdvanceRule())) == {Move.STAY}


def test_a_plateau_needs_a_stable_gradient_norm() -> None:
    calm = [0.5] * 12
    wild = [0.5] * 5 + [4.0, 0.5, 0.5] * 2 + [0.5]
    assert decide(calm, AdvanceRule())[-1] is Move.FINISH
    assert set(decide(calm, AdvanceRule(), wild)) == {Move.STAY}


def test_a_collapse_is_not_a_plateau() -> None:
    falling = [0.6, 0.6, 0.55, 0.45, 0.35, 0.25, 0.15, 0.1]
    curriculum = Curriculum((Stage("only"),), AdvanceRule())
    decisions = [curriculum.observe(Evaluation(i, score, (0.5,))) for i, score in enumerate(falling)]
    assert {decision.move for decision in decisions} == {Move.STAY}
    assert "falls" in decisions[-1].reasons[0]


def test_a_late_bloomer_is_waited_for_with_a_success_band() -> None:
    late = [0.02] * 10 + [0.1, 0.2, 0.35, 0.5, 0.62, 0.7]
    assert len(decide(late, AdvanceRule())) < 10
    patient = decide(late, AdvanceRule(success_band=(0.2, 0.6)))
    assert patient[-1] is Move.FINISH
    assert len(patient) == 15


def test_budget_mixed_groups_and_hint_gap() -> None:
    assert len(decide([0.1 * i for i in range(10)], AdvanceRule(max_steps=40))) == 4
    curriculum = Curriculum((Stage("a", max_steps=20), Stage("b")), AdvanceRule(max_steps=40))
    moves = [curriculum.observe(Evaluation(step, 0.1)).move for step in (10, 20, 10, 40)]
    assert moves == [Move.STAY, Move.ADVANCE, Move.STAY, Move.FINISH]
    tired = Curriculum((Stage("a"),), AdvanceRule(min_mixed_groups=0.3))
    moves = [tired.observe(Evaluation(i, 0.1 * i, mixed_groups=share)).move for i, share in enumerate((0.5, 0.2, 0.1))]
    assert moves == [Move.STAY, Move.STAY, Move.FINISH]
    leaning = Curriculum((Stage("a"),), AdvanceRule(max_hint_gap=0.1))
    moves = [leaning.observe(Evaluation(i, 0.5, hint_gap=0.4)).move for i in range(12)]
    assert set(moves) == {Move.STAY}
    assert "hints are worth 0.400" in str(leaning.decisions[-1])


def test_numbers_that_are_broken_stop_the_run() -> None:
    for bad in (Evaluation(1, math.nan), Evaluation(1, 0.5, (0.1, math.inf))):
        curriculum = Curriculum((Stage("a"), Stage("b")))
        decision = curriculum.observe(bad)
        assert decision.move is Move.STOP
        assert curriculum.stage == Stage("a")


def test_every_decision_says_why_and_is_handed_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    curriculum = Curriculum(FOUR_STAGES, AdvanceRule(max_steps=5), on_decision=lambda d: heard.append(str(d)))
    with caplog.at_level("INFO"):
        curriculum.observe(Evaluation(5, 0.3))
    assert heard == ["1_syntax, step 5: advance. The stage's budget of 5 steps is spent."]
    assert caplog.messages == heard


def test_the_state_is_saved_and_a_resumed_curriculum_goes_on_alike(tmp_path: Path) -> None:
    rule, scores = AdvanceRule(window=2, max_steps=70), [0.1, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.2]
    whole, path = Curriculum(FOUR_STAGES, rule), tmp_path / "run" / "curriculum.json"
    for index, score in enumerate(scores):
        evaluation = Evaluation(index, score, (0.5, 0.6))
        expected = whole.observe(evaluation)
        assert Curriculum(FOUR_STAGES, rule, path=path).observe(evaluation) == expected
    resumed = Curriculum(FOUR_STAGES, rule, path=path)
    assert resumed.decisions == whole.decisions
    assert resumed.stage == whole.stage != FOUR_STAGES[0]
    with pytest.raises(CurriculumError, match="other rule"):
        Curriculum(FOUR_STAGES, AdvanceRule(window=3), path=path)
    with pytest.raises(CurriculumError, match="other stages"):
        Curriculum(FOUR_STAGES[:2], rule, path=path)
    path.write_text("{}")
    with pytest.raises(CurriculumError, match="not a curriculum's state"):
        Curriculum(FOUR_STAGES, rule, path=path)


def test_whether_a_stage_is_left_is_known_before_it_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "curriculum.json"
    curriculum = Curriculum((Stage("a", max_steps=2), Stage("b")), path=path)
    assert [curriculum.leaves(Evaluation(step, 0.5)) for step in (1, 2)] == [False, True]
    assert not curriculum.leaves(Evaluation(2, math.nan))
    assert (curriculum.stage_index, curriculum.decisions, path.exists()) == (0, [], False)
    curriculum.observe(Evaluation(2, 0.5))
    follower = Curriculum(curriculum.stages, path=path, follows=True)
    assert follower.stage_index == 1
    follower.observe(Evaluation(1, 0.5))
    assert len(follower.decisions) == 2
    assert len(Curriculum(curriculum.stages, path=path).decisions) == 1


def test_nothing_is_left_to_decide_at_the_end() -> None:
    curriculum = Curriculum((Stage("a"),), AdvanceRule(max_steps=1))
    curriculum.observe(Evaluation(1, 0.1))
    assert curriculum.stage is None
    with pytest.raises(CurriculumError, match="over"):
        curriculum.observe(Evaluation(2, 0.1))


# --- difficulty ---


def test_help_follows_success_into_the_band() -> None:
    """A task whose success rises by 0.3 with each level of help ends where its success lies in the band."""
    for base, expected in ((0.0, 1), (0.9, 0), (0.35, 3), (-0.5, 3)):
        controller = DifficultyController(start=3, band=(0.2, 0.7))
        for _ in range(20):
            success = min(max(base + 0.3 * controller.level("t"), 0.0), 1.0)
            controller.observe("t", [success] * 4)
        if base == 0.35:
            assert controller.level("t") == 1
        else:
            assert controller.level("t") in ({1, 2} if expected == 1 else {expected})


def test_luck_does_not_move_a_level_and_the_ceiling_fades_all_help() -> None:
    controller = DifficultyController(start=1, patience=2)
    assert [controller.observe("t", [0.0]), controller.observe("t", [0.5]), controller.observe("t", [0.0])] == [1, 1, 1]
    assert controller.observe("t", [0.0]) == 2
    assert controller.observe("t", []) == 2
    controller.ceiling = 0
    assert controller.level("t") == controller.level("new") == 0
    assert controller.mean_level == 0.0


def test_no_level_is_counted_above_the_ceiling() -> None:
    """Else a task that has failed for long would first have to come down from levels that it was never given."""
    controller = DifficultyController(start=1, patience=1, ceiling=1)
    for _ in range(3):
        controller.observe("t", [0.0])
    assert controller.observe("t", [1.0]) == 0


def test_the_controllers_state_is_json() -> None:
    controller = DifficultyController(start=2)
    for rewards in ([0.0], [0.0], [1.0]):
        controller.observe("t", rewards)
    twin = DifficultyController.at(json.loads(json.dumps(controller.state())))
    assert twin == controller
    with pytest.raises(CurriculumError, match="band"):
        DifficultyController(band=(0.8, 0.2))


def test_a_binary_reward_is_all_or_nothing() -> None:
    assert RewardMix(solved=1.0) == BINARY_REWARD


# --- what every trainer shares ---


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate is a positive number, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is a positive number, got nan"),
        ({"kl": -0.1}, "kl is a number of at least 0"),
        ({"evaluate_every": 0}, "evaluate_every is at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(CurriculumError, match=re.escape(named)):
        LearningSettings(**wrong)  # type: ignore[arg-type]


def test_the_settings_are_the_papers_and_the_run_names_what_changed(tmp_path: Path) -> None:
    settings = LearningSettings(prompts=2)
    assert (settings.clip_low, settings.clip_high, settings.dual_clip, settings.kl) == (0.2, 0.28, 10.0, 0.1)
    stages = tuple(settings.stage(stage) for stage in FOUR_STAGES)
    assert {stage.prompts for stage in stages} == {2}
    check_unchanged(tmp_path / "train.json", run_identity("m", TASKS, TASKS[:4], stages, settings))
    free = replace(settings, save_every=1)
    check_unchanged(tmp_path / "train.json", run_identity("m", TASKS, TASKS[:4], stages, free))
    changed = run_identity("n", TASKS[1:], TASKS[:4], stages, replace(settings, seed=1))
    with pytest.raises(CurriculumError, match="another model, model files, seed, tasks"):
        check_unchanged(tmp_path / "train.json", changed)


def test_weights_of_the_same_size_and_worlds_of_the_same_words_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    content = bytearray(Random(0).randbytes(2_000_000))
    file.write_bytes(content)
    first = checkpoint_digest(tmp_path)
    content[::1000] = bytes(len(content[::1000]))
    file.write_bytes(content)
    assert checkpoint_digest(tmp_path) != first
    other = [replace(TASKS[0], data={**TASKS[0].data, "seed": object()}), *TASKS[1:]]
    assert task_digest(other) != task_digest(TASKS)
    assert task_digest(other) == task_digest([replace(other[0], data={**other[0].data, "seed": object()}), *TASKS[1:]])


def test_a_missing_trainer_is_the_line_that_installs_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"Training needs no-such-package>=1\.2,<1\.3.*\n  pip install x"):
        check_version("no-such-package", (1, 2), (1, 3), feature="training", install="pip install x")
    with pytest.raises(MissingDependencyError, match=r"known to work with >=0\.1,<0\.2"):
        check_version("pytest", (0, 1), (0, 2), feature="training", install="pip install x")


def test_steps_that_teach_nothing_become_one_finding_and_cold_only_from_the_beginning() -> None:
    signal = LearningSignal(patience=2)
    first = signal.observe(1, 0.0, 0.0)
    assert first is not None
    assert (first.steps, first.cold, signal.finding(first)) == (1, True, False)
    second = signal.observe(2, 0.0, 0.0)
    assert second is not None
    assert (signal.finding(second), signal.finding(second)) == (True, False)
    assert str(second) == (
        "steps 1 to 2: every group's rewards are equal, so they teach nothing. "
        "All of them are 0: the model earns no reward yet."
    )
    assert second.advice("Warm it up.").startswith("Warm it up. Or raise the hint level")
    assert signal.observe(3, 0.25, 0.1) is None
    third = signal.observe(4, 0.0, 0.0)
    assert third is not None
    assert (third.steps, third.cold) == (1, False)
    equal = LearningSignal(patience=1).observe(1, 0.0, 1.0)
    assert equal is not None
    assert not equal.cold
    assert "harder tasks" in equal.advice("Warm it up.")


def test_a_restart_forgets_what_the_stage_has_shown_and_is_resumed(tmp_path: Path) -> None:
    stages = (Stage("a", max_steps=4), Stage("b", max_steps=2))
    curriculum = Curriculum(stages, path=tmp_path / "c.json")
    curriculum.observe(Evaluation(2, 0.0))
    assert curriculum.remark(2, "Nothing was learnt.").move is Move.STAY
    assert str(curriculum.restart(3, "Cold.", "Warmed up.")) == "a, step 3: restart. Cold. Warmed up."
    again = Curriculum(stages, path=tmp_path / "c.json")
    assert list(again.evaluations) == []
    assert again.stage == stages[0]
    assert [decision.move for decision in again.decisions] == [Move.STAY, Move.STAY, Move.RESTART]
    again.observe(Evaluation(4, 0.1))
    again.observe(Evaluation(2, 0.1))
    with pytest.raises(CurriculumError, match="All stages are over"):
        again.restart(1, "x")


def test_a_model_card_has_the_table_the_stages_and_what_was_begun_again(tmp_path: Path) -> None:
    curriculum = Curriculum((Stage("a", hint_level=2, max_steps=2), Stage("b", categories=("base",), max_steps=2)))
    curriculum.restart(3, "Cold.")
    curriculum.observe(Evaluation(2, 0.5))
    before = {"base": Solved(1, 4), "miss_param": Solved(0, 2)}
    after = {"base": Solved(3, 4), "miss_param": Solved(1, 2)}
    card = write_card(tmp_path, "org/Small-1B", 16, curriculum, LearningSettings(), before, after, ["A note."])
    text = card.read_text()
    assert text.startswith("---\nbase_model: org/Small-1B\n")
    assert "| base | 3 | 4 | 75.00% | 25.00% |" in text
    assert "| **OVERALL** | **4** | **6** | **62.50%** | **12.50%** |" in text
    assert "1. **a**: all categories, hint level 2, 2 steps. The stage's budget of 2 steps is spent." in text
    assert "   - Begun again after step 3. Cold." in text
    assert "2. **b**: base, no hints, not finished." in text
    assert "LoRA adapter, rank 16" in text
    assert "\n\nA note.\n\n" in text


async def test_every_playground_task_is_solved_by_its_own_solution() -> None:
    source = find_task_source("playground")
    for task in source.load("train", None)[::40]:
        model = ScriptedChatModel(script=source.solution_replies(task))
        assert (await run_directly(model, source.environment(task), hints=0)).solved, task.task_id
    with pytest.raises(TaskError, match="Give it a `solution`"):
        replace(source, solution=None).solution_replies(TASKS[0])
