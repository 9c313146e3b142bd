"""The live environment: turns, tools, snapshots, and worlds that share nothing."""

import asyncio
import decimal
import json

import jsonschema
import pytest

from envtune_agents.errors import EnvironmentStateError
from envtune_agents.types import DetectsFailures, Environment, FailureKind, Forkable, RunsCalls, ToolCall
from envtune_bfcl import BfclEnvironment, load_task, load_tasks, try_calls
from envtune_bfcl.data import HELD_OUT_MESSAGE


@pytest.fixture
def env():
    env = BfclEnvironment(load_task("multi_turn_base_0"))
    env.open_turn()
    return env


def tool(env, name):
    return next(tool for tool in env.tools() if tool.name == name)


def opened(task_id, turn=0):
    env = BfclEnvironment(load_task(task_id))
    env.open_turn()
    for _ in range(turn):
        env.close_turn()
        env.open_turn()
    return env


# --- protocol and order ---


def test_satisfies_the_protocols(env):
    for protocol in (Environment, Forkable, DetectsFailures, RunsCalls):
        assert isinstance(env, protocol)


def test_turns_come_in_order(env):
    task = env.task
    for expected in task.turns[1:]:
        env.close_turn()
        assert env.open_turn() == expected
    env.close_turn()
    assert env.open_turn() is None


def test_misuse_is_an_error(env):
    with pytest.raises(EnvironmentStateError, match="still open"):
        env.open_turn()
    env.close_turn()
    with pytest.raises(EnvironmentStateError, match="No turn is open"):
        env.close_turn()
    with pytest.raises(EnvironmentStateError, match="No turn is open"):
        env.run_call(ToolCall("ls"))


def test_evidence_names_apis_and_needed_results(env):
    env.run_call(ToolCall("cd", {"folder": "document"}))
    evidence = env.close_turn()
    assert evidence.state_checks == {"TwitterAPI": True, "GorillaFileSystem": False}
    assert evidence.response_checks == {"0:cd": True, "1:mkdir": False, "2:mv": False}


# --- tools ---


def test_tools_are_valid_json_schema_and_keep_the_docs():
    for task in load_tasks("all", "base")[::20]:
        for tool in BfclEnvironment(task).tools():
            jsonschema.Draft202012Validator.check_schema(tool.args_schema)
            jsonschema.Draft202012Validator.check_schema(tool.metadata["response"])
            assert "dict" not in json.dumps(tool.args_schema["type"])
            assert tool.metadata["api"] in task.data["involved_classes"]
            assert tool.description


def test_schemas_are_shared_and_showing_them_to_a_model_changes_none():
    from langchain_core.utils.function_calling import convert_to_openai_tool

    from envtune_agents.hints import tool_schemas

    first, second = (BfclEnvironment(load_task("multi_turn_base_0")).tools() for _ in range(2))
    before = [json.dumps([tool.args_schema, tool.metadata]) for tool in first]
    assert all(a.args_schema is b.args_schema for a, b in zip(first, second, strict=True))
    shown = [convert_to_openai_tool(tool, strict=True) for tool in first]
    shown += [convert_to_openai_tool(tool) for tool in first]
    assert tool_schemas(second)
    assert len(shown) == 2 * len(first)
    assert [json.dumps([tool.args_schema, tool.metadata]) for tool in second] == before


def test_types_defaults_and_items_survive():
    schema = tool(opened("multi_turn_base_0"), "tail").args_schema
    assert schema["properties"]["lines"]["type"] == "integer"
    assert schema["properties"]["lines"]["default"] == 10
    env = BfclEnvironment(next(t for t in load_tasks("all") if "MathAPI" in t.data["involved_classes"]))
    numbers = tool(env, "mean").args_schema["properties"]["numbers"]
    assert (numbers["type"], numbers["items"]) == ("array", {"type": "number"})


def test_arguments_reach_the_executor_as_they_are(env):
    assert tool(env, "cd").invoke({}) == (
        "Error during execution: GorillaFileSystem.cd() missing 1 required positional argument: 'folder'"
    )
    unknown = {"folder": "document", "config": 1, "self": 2, "run_manager": 3, "callbacks": 4}
    for name, value in unknown.items():
        if name == "folder":
            continue
        answer = tool(env, "cd").invoke({"folder": "document", name: value})
        assert answer.startswith("Error during execution: ")
        assert repr(name) in answer
    env.run_call(ToolCall("cd", {"folder": "document"}))
    answer = tool(env, "tail").invoke({"file_name": "final_report.pdf", "lines": "3"})  # not made a number on the way
    assert answer == "Error during execution: '>' not supported between instances of 'str' and 'int'"


def test_tools_and_run_call_act_on_the_same_world(env):
    assert tool(env, "cd").invoke({"folder": "document"}) == '{"current_working_directory": "document"}'
    assert env.run_call(ToolCall("pwd")) == '{"current_working_directory": "/workspace/document"}'
    assert asyncio.run(tool(env, "mkdir").ainvoke({"dir_name": "temp"})) == "None"
    assert (
        env.run_call(ToolCall("ls"))
        == '{"current_directory_content": ["final_report.pdf", "previous_report.pdf", "temp"]}'
    )


def test_refused_names_have_the_official_answer(env):
    assert env.run_call(ToolCall("kill", {"pid": 1})) == "Error during execution: Function call kill is not allowed."
    assert env.run_call(ToolCall("nope")) == "Error during execution: name 'nope' is not defined"


def test_held_out_tools_appear_at_their_turn_and_run_before_it():
    task = load_task("multi_turn_miss_func_0")
    assert task.data["missed_function"] == {"3": ["sort"]}
    env = opened(task.task_id)
    assert "sort" not in {tool.name for tool in env.tools()}
    assert env.run_call(ToolCall("sort", {"file_name": "none"})) == '{"error": "sort: none: No such file or directory"}'
    assert "sort" in {tool.name for tool in BfclEnvironment(load_task("multi_turn_base_0")).tools()}
    for _ in range(2):
        env.close_turn()
        env.open_turn()
        assert "sort" not in {tool.name for tool in env.tools()}
    env.close_turn()
    assert env.open_turn() == HELD_OUT_MESSAGE
    assert env.tools()[-1].name == "sort"


# --- snapshots ---


def test_a_fork_continues_alone(env):
    env.run_call(ToolCall("cd", {"folder": "document"}))
    other = env.fork()
    assert other.snapshot() == env.snapshot()
    other.run_call(ToolCall("mkdir", {"dir_name": "temp"}))
    assert "temp" not in env.run_call(ToolCall("ls"))
    assert "temp" in other.run_call(ToolCall("ls"))


@pytest.mark.parametrize("task_id", ["multi_turn_base_0", "multi_turn_long_context_150", "multi_turn_miss_func_120"])
def test_a_fork_at_every_point_ends_alike(task_id):
    env = BfclEnvironment(load_task(task_id))
    snapshots = [env.snapshot()]
    truth = env.task.data["ground_truth"]
    for calls in truth:
        env.open_turn()
        answers = [env.run_text(text) for text in calls]
        snapshots.append(env.snapshot())
        evidence = env.close_turn()
        other = env.fork(json.loads(json.dumps(snapshots[-1])))
        assert other.close_turn() == evidence
        again = env.fork(snapshots[-2])
        if snapshots[-2]["open"]:
            again.close_turn()
        again.open_turn()
        assert [again.run_text(text) for text in calls] == answers
    assert len(json.dumps(snapshots[-1])) < 10_000


@pytest.mark.parametrize("bad", [{}, [], "x", {"open": True, "turns": []}, {"open": False, "turns": [[1]]}, 3])
def test_a_bad_snapshot_is_an_error(env, bad):
    with pytest.raises(EnvironmentStateError, match="Not a snapshot"):
        env.fork(bad)


# --- nothing is shared ---


def test_default_lists_do_not_leak_between_episodes():
    task_id = next(t.task_id for t in load_tasks("all", "base") if "TwitterAPI" in t.data["involved_classes"])
    first, second = opened(task_id), opened(task_id)
    login = json.dumps(first.task.data["initial_config"].get("TwitterAPI", {}))
    config = json.loads(login)
    user, word = config.get("username", "john"), config.get("password", "john123")
    for env in (first, second):
        env.run_call(ToolCall("authenticate_twitter", {"username": user, "password": word}))
    tweet = json.loads(first.run_call(ToolCall("post_tweet", {"content": "hi"})))
    first.run_call(ToolCall("mention", {"tweet_id": tweet["id"], "mentioned_usernames": ["@a"]}))
    assert json.loads(second.run_call(ToolCall("post_tweet", {"content": "hi"})))["mentions"] == []


def test_long_context_state_is_large_and_not_shared():
    task = next(t for t in load_tasks("all", "long_context") if "TravelAPI" in t.data["involved_classes"])
    short = load_task(task.task_id.replace("long_context", "base"))
    first, second, plain = (BfclEnvironment(t) for t in (task, task, short))
    for env in (first, second, plain):
        env.open_turn()
    cards = [len(json.loads(env.run_text("get_all_credit_cards()"))["credit_card_list"]) for env in (first, plain)]
    assert cards[0] >= cards[1] + 20
    before = second.run_text("get_all_credit_cards()")
    first._play._world.instance("TravelAPI").credit_card_list["1234567812345678"]["balance"] = -1
    assert second.run_text("get_all_credit_cards()") == before


def test_long_answers_are_the_official_json():
    task = next(t for t in load_tasks("all", "long_context") if "TradingBot" in t.data["involved_classes"])
    env = BfclEnvironment(task)
    env.open_turn()
    answer = env.run_call(ToolCall("get_stock_info", {"symbol": "AAPL"}))
    assert json.dumps(json.loads(answer)) == answer
    assert len(json.loads(answer)["MA(5)"]) == 2000


def test_precision_of_the_process_is_left_alone():
    import mpmath

    task_id = next(t.task_id for t in load_tasks("all", "base") if "MathAPI" in t.data["involved_classes"])
    env, before = opened(task_id), (decimal.getcontext().prec, mpmath.mp.dps)
    root = env.run_call(ToolCall("square_root", {"number": 2, "precision": 60}))
    assert root == "{'result': Decimal('1.41421356237309504880168872420969807856967187537694807317668')}"
    assert env.run_call(ToolCall("logarithm", {"value": 8, "base": 2, "precision": 5})) == "{'result': mpf('3.0')}"
    assert (decimal.getcontext().prec, mpmath.mp.dps) == before


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("power(base=10, exponent=1000000000)", "Exceeds the limit (4300 digits) for integer string conversion"),
        ("square_root(number=2, precision=10000000000)", "precision of 10000000000 digits is above 100000"),
        ("logarithm(value=2, base=3, precision=10000000000)", "precision of 10000000000 digits is above 100000"),
    ],
)
def test_endless_arithmetic_is_answered_at_once(text, answer):
    task_id = next(t.task_id for t in load_tasks("all", "base") if "MathAPI" in t.data["involved_classes"])
    assert opened(task_id).run_text(text) == f"Error during execution: {answer}"
    assert opened(task_id).run_text("round_number(number=5, decimal_places=-10000000000)") == '{"result": 0}'


# --- failures ---


PRIVATE_FAILURES = [
    ("VehicleControlAPI", "get_zipcode_based_on_city(city='Atlantis')", FailureKind.TOOL_ERROR),
    ("TravelAPI", "get_nearest_airport_by_city(location='Atlantis')", FailureKind.TOOL_ERROR),
    ("TravelAPI", "verify_traveler_information('No', 'Body', '1990-01-01', 'US1')", FailureKind.TOOL_ERROR),
    ("TradingBot", "get_symbol_by_name(name='Nobody Inc')", FailureKind.TOOL_ERROR),
    ("TradingBot", "add_to_watchlist(stock='NOPE')", FailureKind.EMPTY_RESULT),
    ("TradingBot", "get_available_stocks(sector='Nothing')", FailureKind.EMPTY_RESULT),
    ("TwitterAPI", "authenticate_twitter(username='x', password='y')", FailureKind.TOOL_ERROR),
    ("TwitterAPI", "search_tweets(keyword='zzzzzz')", FailureKind.EMPTY_RESULT),
    ("MessageAPI", "message_login(user_id='USR999')", FailureKind.TOOL_ERROR),
    ("TicketAPI", "ticket_login(username='', password='')", FailureKind.TOOL_ERROR),
    ("GorillaFileSystem", "find(path='.', name='zzzzzz')", FailureKind.EMPTY_RESULT),
    ("GorillaFileSystem", "cat(file_name='zzzzzz')", FailureKind.TOOL_ERROR),
    ("GorillaFileSystem", "cat(file='zzzzzz')", FailureKind.UNKNOWN_ARGUMENT),
    ("GorillaFileSystem", "cat('zzzzzz'))", FailureKind.MALFORMED_CALL),
]


@pytest.mark.parametrize(("api", "text", "kind"), PRIVATE_FAILURES)
def test_failures_are_seen(api, text, kind):
    task = next(t for t in load_tasks("all", "base") if api in t.data["involved_classes"])
    (outcome,) = try_calls(task, [text])
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert outcome.content == outcome.raw_content


@pytest.mark.parametrize(
    ("api", "text"),
    [
        ("VehicleControlAPI", "get_zipcode_based_on_city(city='Rivermist')"),
        ("TradingBot", "trading_get_login_status()"),
        ("TradingBot", "add_to_watchlist(stock='AAPL')"),
        ("MessageAPI", "message_get_login_status()"),
        ("GorillaFileSystem", "find(path='.')"),
        ("GorillaFileSystem", "cd(folder='.')"),
        ("GorillaFileSystem", "touch(file_name='new.txt')"),
    ],
)
def test_successes_are_not_failures(api, text):
    task = next(t for t in load_tasks("all", "base") if api in t.data["involved_classes"])
    assert try_calls(task, [text])[0].failure is None


def test_ground_truth_calls_are_hardly_ever_failures():
    flagged = total = 0
    for task in load_tasks("validation", "base"):
        env = BfclEnvironment(task)
        for calls in task.data["ground_truth"]:
            env.open_turn()
            outcomes = [(text, env.run_text(text)) for text in calls]
            env.close_turn()
            total += len(outcomes)
            flagged += sum(env.detect_failure(ToolCall(t.split("(")[0]), answer) is not None for t, answer in outcomes)
    assert total > 100
    assert flagged <= total // 50


def test_level_zero_leaves_every_byte(env):
    outcomes = try_calls(env.task, ["cd(folder='nowhere')", "cat(file='x')", "ls()", "cd("], hint_level=0)
    assert all(outcome.content == outcome.raw_content and outcome.hint is None for outcome in outcomes)
    assert [outcome.name for outcome in outcomes] == ["cd", "cat", "ls", "cd"]
