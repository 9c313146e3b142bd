"""Call texts: what parses, what the official rewriting does, and what must never run."""

import sys

import pytest

from envtune_agents.types import ToolCall
from envtune_bfcl import BfclEnvironment, load_task, parse_call
from envtune_bfcl.calls import call_text


@pytest.fixture
def run():
    env = BfclEnvironment(load_task("multi_turn_base_0"))
    env.open_turn()
    return env.run_text


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("cd(folder='docs')", "cd", {"folder": "docs"}),
        ("  cd ( 'docs' )", "cd", {"folder": "docs"}),
        ("tail('a.txt', lines=-3)", "tail", {"file_name": "a.txt", "lines": -3}),
        (
            "lockDoors(unlock=True, door=['driver', 'rear' '_left'])",
            "lockDoors",
            {"unlock": True, "door": ["driver", "rear_left"]},
        ),
        (
            "edit_ticket(1, {'title': None, 'n': (1, {2})})",
            "edit_ticket",
            {"ticket_id": 1, "updates": {"title": None, "n": (1, {2})}},
        ),
        ("made_up(1, x=2)", "made_up", {"argument_1": 1, "x": 2}),
        ("mean(numbers=[1 + 2, 3 * 4])", "mean", {"numbers": [3, 12]}),
        ("cd(folder=pwd())", "cd", {"folder": "pwd()"}),
        ("ls()", "ls", {}),
    ],
)
def test_parse_call(text, name, args):
    assert parse_call(text) == ToolCall(name, args)


@pytest.mark.parametrize(
    "text", ["", "cd(", "cd('a'))", "cd", "{'name': 'cd'}", "a.cd()", "cd(a=1, a=2)", "\0", "(" * 10_000]
)
def test_parse_call_refuses(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_call(text)


def test_call_text_is_the_official_form():
    call = ToolCall("echo", {"content": "it's", "n": 1.0, "tags": ["a"], "none": None})
    assert call_text(call) == "echo(content=\"it's\",n=1.0,tags=['a'],none=None)"
    assert parse_call(call_text(call)) == call


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("cd(folder='document'))", "unmatched ')' (<string>, line 1)"),
        ("cd(folder='document'", "'(' was never closed (<string>, line 1)"),
        ("cd(folder='document", "unterminated string literal (detected at line 1) (<string>, line 1)"),
        ("cd(folder='a', folder='b')", "keyword argument repeated: folder (<string>, line 1)"),
        ("cd", "name 'cd' is not defined"),
        ("(cd)(folder='document')", "name 'cd' is not defined"),
        ("cd(folder=document)", "name 'document' is not defined"),
        ("cd(folder=true)", "name 'true' is not defined"),
        ("nope(folder=cd('document'))", "name 'nope' is not defined"),
        ("GorillaFileSystem.cd('document')", "name 'GorillaFileSystem' is not defined"),
        ("__import__('os').system('x')", "name '__import__' is not defined"),
        ("open('/etc/passwd').read()", "name 'open' is not defined"),
        ("eval('1')", "name 'eval' is not defined"),
        ("os.remove('x')", "Function call remove is not allowed."),
        ("exit()", "Function call exit is not allowed."),
        ("quit", "Function call quit is not allowed."),
        ("", "invalid syntax (<string>, line 0)"),
        ("\0", "source code string cannot contain null bytes"),
    ],
)
def test_errors_are_the_official_words(run, text, answer):
    assert run(text) == f"Error during execution: {answer}"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("{'name': 'cd'}", '{"name": "cd"}'),
        ("'text'", "text"),
        ("[1, pwd()]", "[1, {'current_working_directory': '/workspace'}]"),
        (
            "cd('document'), pwd()",
            "({'current_working_directory': 'document'}, {'current_working_directory': '/workspace/document'})",
        ),
        ("echo(content=echo('a'))", '{"terminal_output": {"terminal_output": "a"}}'),
        ("echo(*['a'])", '{"terminal_output": "a"}'),
        ("echo(**{'content': 'a' 'b'})", '{"terminal_output": "ab"}'),
        ("echo(content=-1)", '{"terminal_output": -1}'),
        (r"echo(content='\d')", r'{"terminal_output": "\\d"}'),
    ],
)
def test_other_expressions_mean_what_eval_would_say(run, text, answer):
    assert run(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + ")" * 10_000,
        "cd(folder=" + "[" * 10_000 + "]" * 10_000 + ")",
        "echo(content=" + "-" * 100_000 + "1)",
        "echo(content='" + "x" * 1_000_000 + "')",
        "echo(content=" + "1+" * 50_000 + "1)",
        "echo(content='a' * 1000000000)",
        "echo(content=9 ** 9 ** 9)",
        "echo(content=[x for x in 'ab'])",
        "(lambda: 1)()",
        "echo(content=().__class__.__bases__)",
        "echo(content=f'{1}')",
        "echo(content='\ud800'",
        "cd" + "(" * 5_000,
    ],
)
def test_garbage_is_an_error_text_and_nothing_runs(run, text):
    limit = sys.getrecursionlimit()
    answer = run(text)
    assert answer.startswith("Error during execution: ")
    assert len(answer) < 10_000
    assert sys.getrecursionlimit() == limit
    assert run("pwd()") == '{"current_working_directory": "/workspace"}'


def test_lists_in_a_text_are_made_afresh_for_each_run():
    from envtune_bfcl import load_tasks

    task = next(t for t in load_tasks("all", "base") if "TwitterAPI" in t.data["involved_classes"])
    config = task.data["initial_config"].get("TwitterAPI", {})
    login = f"authenticate_twitter({config.get('username', 'john')!r}, {config.get('password', 'john123')!r})"
    post = "post_tweet(content='hi', mentions=['@a'])"
    answers = []
    for _ in range(2):
        env = BfclEnvironment(task)
        env.open_turn()
        env.run_text(login)
        answers.append(env.run_text(post))
        number = task.data["initial_config"].get("TwitterAPI", {}).get("tweet_counter", 0)
        env.run_text(f"mention(tweet_id={number}, mentioned_usernames=['@b'])")
    assert answers[0] == answers[1]
    assert '"mentions": ["@a"]' in answers[0]
