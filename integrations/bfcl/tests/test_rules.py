"""BFCL's hint rules: what they cover, and that level 0 is silent. `test_leaks.py` holds that they leak nothing."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from envtune_agents.graph import build_agent_graph
from envtune_agents.hint_rules import DEFAULT_RULES, DeclaredRule
from envtune_agents.hints import HintDial, HintEngine, outcomes_in, tool_schemas
from envtune_agents.testing import ScriptedChatModel
from envtune_agents.types import CallOutcome, Task, ToolCall
from envtune_bfcl import BFCL_RULES, BfclEnvironment, load_task, load_tasks, parse_call, try_calls
from envtune_bfcl.environment import task_source
from envtune_bfcl.rules import hint_rules

DOORS = "lockDoors(unlock=False, door=['driver', 'passenger', 'rear_left', 'rear_right'])"
START = "startEngine(ignitionMode='START')"
LOGIN = "message_login(user_id='USR001')"

# API class, calls of which the last fails, what its hint must say.
FAILING: list[tuple[str, list[str], str]] = [
    ("GorillaFileSystem", ["cat(file_name='nope.txt')"], "Call ls"),
    ("GorillaFileSystem", ["cat(file_name='a/nope.txt')"], "Go to the folder with cd"),
    ("GorillaFileSystem", ["cd(folder='a/b')"], "one level at a time"),
    ("GorillaFileSystem", ["cd(folder='nope')"], "Call ls"),
    ("GorillaFileSystem", ["cp(source='nope', destination='x')"], "Call ls"),
    ("GorillaFileSystem", ["diff(file_name1='nope', file_name2='x')"], "One of file_name1 and file_name2"),
    ("GorillaFileSystem", ["echo(content='x', file_name='no.txt')"], "Create the file with touch"),
    ("GorillaFileSystem", ["find(path='nope', name='x')"], "existing folder"),
    ("GorillaFileSystem", ["find(path='.', name='zzzzzz')"], "shorter part of the name"),
    ("GorillaFileSystem", ["mkdir(dir_name='a|b')"], "Leave those characters out"),
    ("GorillaFileSystem", ["mkdir(dir_name='q1')", "cat(file_name='q1')"], "is a folder"),
    ("GorillaFileSystem", ["mkdir(dir_name='q1')", "mkdir(dir_name='q1')"], "exists already"),
    ("GorillaFileSystem", ["touch(file_name='q1')", "rmdir(dir_name='q1')"], "Use rm"),
    ("GorillaFileSystem", ["touch(file_name='q1')", "wc(file_name='q1', mode='lines')"], "l, w, c"),
    ("GorillaFileSystem", ["touch(file_name='q1')", "grep(file_name='q1', pattern='x')"], "literally"),
    (
        "GorillaFileSystem",
        ["touch(file_name='q1')", "touch(file_name='q2')", "mv(source='q1', destination='q2')"],
        "is an existing file",
    ),
    ("VehicleControlAPI", ["lockDoors(unlock=True, door=['driver'])", START], "Call lockDoors"),
    ("VehicleControlAPI", [DOORS, START], "pressBrakePedal with pedalPosition=1,"),
    ("VehicleControlAPI", [DOORS, "pressBrakePedal(pedalPosition=0.5)", START], "fully pressed"),
    ("VehicleControlAPI", ["setCruiseControl(speed=65, activate=True, distanceToNextVehicle=10)"], "startEngine first"),
    ("VehicleControlAPI", ["fillFuelTank(fuelAmount=-3)"], "0 or more"),
    ("VehicleControlAPI", ["fillFuelTank(fuelAmount=51)"], "at most 50 gallons"),
    ("VehicleControlAPI", ["pressBrakePedal(pedalPosition=7)"], "between 0 and 1"),
    ("VehicleControlAPI", ["adjustClimateControl(temperature=20, fanSpeed=400)"], "between 0 and 100"),
    ("VehicleControlAPI", ["setHeadlights(mode='ON')"], "exactly as listed: on"),
    ("VehicleControlAPI", ["lockDoors(unlock=False, door=['roof'])"], "driver, passenger"),
    ("VehicleControlAPI", ["estimate_distance(cityA='Paris', cityB='83214')"], "get_zipcode_based_on_city"),
    ("VehicleControlAPI", ["get_zipcode_based_on_city(city='PARIS')"], "no zipcode"),
    ("VehicleControlAPI", ["get_zipcode_based_on_city(city=['Paris'])"], "without brackets"),
    ("VehicleControlAPI", ["get_outside_temperature_from_weather_com()"], "get_outside_temperature_from_google"),
    ("TravelAPI", ["get_nearest_airport_by_city(location='Atlantis')"], "list_all_airports"),
    (
        "TravelAPI",
        ["get_flight_cost(travel_from='Rome', travel_to='Oslo', travel_date='2024-01-01', travel_class='economy')"],
        "get_nearest_airport_by_city",
    ),
    (
        "TravelAPI",
        ["get_flight_cost(travel_from='SFO', travel_to='LAX', travel_date='2024-01-01', travel_class='FIRST')"],
        "exactly as listed: first",
    ),
    ("TravelAPI", ["get_booking_history(access_token='x')"], "Call authenticate_travel first"),
    ("TravelAPI", ["retrieve_invoice(access_token='x')"], "Call authenticate_travel first"),
    ("TravelAPI", ["contact_customer_support(booking_id='1', message='x')"], "get_booking_history"),
    ("TravelAPI", ["compute_exchange_rate(base_currency='usd', target_currency='EUR', value=1.0)"], "in capitals"),
    (
        "TravelAPI",
        ["verify_traveler_information(first_name='A', last_name='B', date_of_birth='x', passport_number='y')"],
        "logged-in user",
    ),
    ("TradingBot", ["trading_logout()", "trading_logout()"], "nobody to log out"),
    ("TradingBot", ["trading_logout()", "get_account_info()"], "Call trading_login first"),
    ("TradingBot", ["trading_logout()", "fund_account(amount=1.0)"], "Call trading_login first"),
    ("TradingBot", ["get_stock_info(symbol='Apple')"], "get_symbol_by_name"),
    ("TradingBot", ["get_symbol_by_name(name='Nope')"], "no symbol"),
    ("TradingBot", ["add_to_watchlist(stock='NOPE')"], "get_symbol_by_name"),
    ("TradingBot", ["get_available_stocks(sector='zoo')"], "capital letter"),
    ("TradingBot", ["cancel_order(order_id=1)"], "get_order_history"),
    ("TradingBot", ["filter_stocks_by_price(stocks=['AAPL'], min_price=9e9, max_price=1e10)"], "Check the range"),
    ("MessageAPI", ["get_user_id(user='Nobody')"], "list_users"),
    ("MessageAPI", ["message_login(user_id='USR999')"], "get_user_id"),
    ("MessageAPI", [LOGIN, "send_message(receiver_id='Bob', message='x')"], "get_user_id"),
    ("MessageAPI", [LOGIN, f"send_message(receiver_id='{'x' * 200}', message='x')"], "get_user_id"),
    ("MessageAPI", [LOGIN, "delete_message(receiver_id='USR999')"], "view_messages_sent"),
    ("MessageAPI", [LOGIN, "search_messages(keyword='zzzz')"], "shorter keyword"),
    ("MessageAPI", ["add_contact(user_name='Zed')", "add_contact(user_name='Zed')"], "get_user_id"),
    ("TwitterAPI", ["authenticate_twitter(username='a', password='b')"], "ask for it"),
    ("TwitterAPI", ["get_tweet(tweet_id=999)"], "get_user_tweets"),
    ("TwitterAPI", ["get_user_tweets(username='nobody')"], "exact user name"),
    ("TwitterAPI", ["search_tweets(keyword='zzzzz')"], "shorter keyword"),
    ("TicketAPI", ["ticket_login(username='', password='')"], "ask for it"),
    ("TicketAPI", ["get_ticket(ticket_id=99999)"], "get_user_tickets"),
    ("TicketAPI", ["edit_ticket(ticket_id=99999, updates={})"], "get_user_tickets"),
    ("MathAPI", ["mean(numbers=[])"], "at least one number"),
    ("MathAPI", ["divide(a=1.0, b=0.0)"], "must not be 0"),
    ("MathAPI", ["square_root(number=-1.0, precision=3)"], "0 or more"),
    ("MathAPI", ["si_unit_conversion(value=1.0, unit_in='mi', unit_out='km')"], "Write the symbols"),
    ("MathAPI", ["imperial_si_conversion(value=1.0, unit_in='stone', unit_out='kg')"], "Write the symbols"),
    ("MathAPI", ["power(base=10.0, exponent=400.0)"], "small enough"),
]


@lru_cache(maxsize=1)
def base_tasks() -> dict[str, Task]:
    """One base task for each API class."""
    tasks: dict[str, Task] = {}
    for task in load_tasks("all", "base"):
        for api in task.data["involved_classes"]:
            tasks.setdefault(api, task)
    return tasks


def last(api: str, calls: list[str], level: int = 3) -> CallOutcome:
    return try_calls(base_tasks()[api], calls, hint_level=level)[-1]


@pytest.mark.parametrize(("api", "calls", "says"), FAILING, ids=lambda value: str(value)[:60])
def test_every_failure_gets_a_hint_that_helps(api: str, calls: list[str], says: str) -> None:
    got = last(api, calls)
    assert got.failure is not None
    assert got.hint is not None
    assert says in got.hint.text
    assert len(got.hint.text) < 600
    levels = [hint.text if (hint := last(api, calls, level).hint) else "" for level in (1, 2, 3)]
    assert 0 < len(levels[0]) < len(levels[2])
    assert levels[2].startswith(levels[1])
    assert levels[1].startswith(levels[0])


@pytest.mark.parametrize(("api", "calls", "says"), FAILING[::5], ids=lambda value: str(value)[:60])
def test_level_0_changes_no_byte(api: str, calls: list[str], says: str) -> None:
    silent, loud = last(api, calls, 0), last(api, calls, 3)
    assert silent.hint is None
    assert silent.content == silent.raw_content == loud.raw_content
    assert silent.failure == loud.failure


def test_a_fault_against_the_schema_is_the_schema_rules_business() -> None:
    got = last("GorillaFileSystem", ["cat(file_name=['nope'])"])
    assert got.hint is not None
    assert got.hint.rule == "schema.wrong_type"


def test_the_rules_have_names_of_their_own_and_reach_the_command_line() -> None:
    names = [rule.name for rule in hint_rules()]
    assert len(set(names)) == len(names)
    assert hint_rules() == (*BFCL_RULES, *DEFAULT_RULES)
    engine = task_source().hint_engine(2)
    assert engine.rules == hint_rules()
    assert engine.dial.level == 2


def test_no_rule_names_a_tool_except_through_visible() -> None:
    """So that no rule, whatever its task, can name a tool that is held back."""
    known = {name for task in base_tasks().values() for name in _schemas(task)}
    english = {"add", "cat", "cd", "comment", "diff", "find", "logout", "mean", "sort", "tail", "touch"}
    for rule in BFCL_RULES:
        assert isinstance(rule, DeclaredRule)
        for part in (rule.problem, *rule.constraint, *rule.pointer):
            plain = set(re.findall(r"\w+", re.sub(r"\{[^}]*\}", "", part)))
            assert not plain & known - english, (rule.name, part)
            assert not re.search(rf"\b(?:call|use|with) (?:{'|'.join(english)})\b", part, re.IGNORECASE)


def test_every_tool_and_argument_that_a_rule_speaks_about_exists() -> None:
    tools = {name: entry for task in base_tasks().values() for name, entry in _schemas(task).items()}
    arguments = {name for entry in tools.values() for name in entry["parameters"]["properties"]}
    for rule in BFCL_RULES:
        assert isinstance(rule, DeclaredRule)
        texts = " ".join((rule.problem, *rule.constraint, *rule.pointer))
        assert set(re.findall(r"\{visible:([^}]*)\}", texts)) <= set(tools), rule.name
        assert set(rule.when.tool) <= set(tools), rule.name
        assert set(rule.when.argument) <= arguments, rule.name
        assert rule.constraint, rule.name
        assert rule.pointer, rule.name


def test_a_held_out_tool_is_never_named() -> None:
    """Every fifth miss_func task: each failure of FAILING whose tool is visible, replayed against that task's menu."""
    failures = [(api, last(api, calls, 0)) for api, calls, _ in FAILING]
    engine = HintEngine(hint_rules())
    asked = 0
    for task in load_tasks("all", "miss_func")[::5]:
        visible = _schemas(task)
        held = {name for names in task.data["missed_function"].values() for name in names}
        assert held
        assert not held & set(visible)
        for _, outcome in failures:
            if outcome.name not in visible:
                continue
            got = engine.outcome(outcome.call, outcome.raw_content, tools=visible, failure=outcome.failure)
            assert got.hint is not None, outcome
            own = set(re.findall(r"\w+", json.dumps([outcome.args, visible[outcome.name]], default=str)))
            named = set(re.findall(r"\w+", got.hint.text)) & held - own
            assert not named, (task.task_id, got.hint)
            asked += 1
    assert asked > 300


def _schemas(task: Task) -> dict[str, dict[str, Any]]:
    return tool_schemas(BfclEnvironment(task).tools())


@pytest.mark.parametrize("task_id", ["multi_turn_base_0", "multi_turn_miss_func_12", "multi_turn_long_context_51"])
def test_hints_never_touch_the_verdict(task_id: str) -> None:
    """Right and spoilt trajectories, played through the graph: the same scores and raw answers at every level."""
    task = load_task(task_id)
    right = [[parse_call(text) for text in calls] for calls in task.data["ground_truth"]]
    spoilt = [[ToolCall("cd", {"folder": "./nowhere"}), *calls[:-1], ToolCall("nothing")] for calls in right]
    noisy = [[ToolCall("nothing"), *calls] for calls in right]
    for trajectory, solved in ((right, True), (spoilt, False), (noisy, True)):
        played = [_played(task, trajectory, level) for level in range(4)]
        assert played[0][0] == played[1][0] == played[2][0] == played[3][0]
        assert played[0][1] == played[3][1]
        assert all(score == 1.0 for score in played[0][0]) is solved
        assert (played[3][2] > 0) is (trajectory is not right)
        assert played[0][2] == 0


def _played(task: Task, turns: list[list[ToolCall]], level: int) -> tuple[list[float], list[str], int]:
    """Scores by turn, raw answers, and the number of hints."""
    script = [reply for calls in turns for reply in (*(_asks(call) for call in calls), AIMessage("Done."))]
    hints = HintEngine(hint_rules(), HintDial(level))
    graph = build_agent_graph(ScriptedChatModel(script=script), BfclEnvironment(task), hints=hints, call_timeout_s=None)
    state = graph.invoke({}, {"recursion_limit": 1_000})
    outcomes = outcomes_in(state["messages"])
    assert all(one.content == one.raw_content for one in outcomes if one.hint is None)
    raw = [one.raw_content for one in outcomes]
    return [score["value"] for score in state["scores"]], raw, sum(one.hint is not None for one in outcomes)


def _asks(call: ToolCall) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": call.name, "args": dict(call.args), "id": "1"}])
