"""Generated tasks in the four categories of BFCL V3 multi-turn, each with the calls that solve it.

As there, `miss_func` holds a needed tool back until the user brings it, `miss_param` leaves a needed value out until
the user says it, and `long_context` fills the world with things that do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from envtune_agents.errors import TaskError, unknown
from envtune_agents.playground.domains import DOMAINS, HELD_OUT_DOMAIN, TRAINING_DOMAINS, Call, Job, an_item
from envtune_agents.playground.renaming import renamed
from envtune_agents.playground.stock import StockRoom
from envtune_agents.playground.world import World
from envtune_agents.types import Task

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")

_CITIES = ("Oslo", "Lima", "Kyoto", "Accra", "Porto", "Quito")
_EXTRA = {"stock": 60, "files": 48, "mail": 12, "travel": 16}
_NEW_TOOL = "There is a new tool now. Please go on."

Turn = tuple[str, Sequence[Call]]


def playground_tasks(seed: int = 0, n: int = 8, category: str | None = None) -> list[Task]:
    """`n` tasks in the stock room, drawn from `seed`, of one category or of all four in turn. The same arguments give
    the same tasks."""
    categories = [_known(category)] if category else list(CATEGORIES)
    return [_stock_task(seed, index, categories[index % len(categories)]) for index in range(n)]


def generated_tasks(
    seed: int,
    n: int,
    category: str | None = None,
    *,
    domains: Sequence[str] = TRAINING_DOMAINS,
    other_names: bool = False,
) -> list[Task]:
    """`n` tasks of 1 to 4 turns drawn from `seed`, the domains and categories in turn.

    `domains` names some of "files", "mail", "travel" (for training) and "stock" (held out). `other_names` gives every
    tool and argument another name and description. The same arguments give the same tasks.
    """
    categories = [_known(category)] if category else list(CATEGORIES)
    for name in domains:
        if name not in DOMAINS:
            raise TaskError(unknown("playground domain", name, DOMAINS))
    tasks = []
    for index in range(n):
        domain = domains[index // len(categories) % len(domains)]
        kind = categories[index % len(categories)]
        make = _stock_task(seed, index, kind) if domain == HELD_OUT_DOMAIN else _task(domain, seed, index, kind)
        tasks.append(renamed(make) if other_names else make)
    return tasks


def _known(category: str) -> str:
    if category not in CATEGORIES:
        raise TaskError(unknown("playground category", category, CATEGORIES))
    return category


def _task(domain: str, seed: int, index: int, category: str) -> Task:
    """A task made of jobs; each looks at the world as the ones before it left it."""
    random = Random(f"{domain}/{seed}/{index}/{category}")
    family = DOMAINS[domain]
    start = family.fill(random, _EXTRA[domain] if category == "long_context" else 0)
    world = family.world(start)
    split = category in ("miss_func", "miss_param")
    before = random.randint(0, 2) if split else random.randint(0, 3)
    # The job of a split request is drawn first, so that no job before it uses the tool it will lack. It is drawn again
    # at its turn, in the world as it is then.
    key = _job(random, world, domain, vague=category == "miss_param").tool if split else None
    turns: list[Turn] = []
    for _ in range(before):
        job = _job(random, world, domain, without=key if category == "miss_func" else None)
        turns.append((job.request, job.calls))
        _make(world, job.calls)
    last = _job(random, world, domain, vague=category == "miss_param", tool=key)
    turns += _in_two(category, last) if split else [(last.request, last.calls)]
    held_back = {last.tool: len(turns) - 1} if category == "miss_func" else {}
    return _as_task(f"playground_{domain}_{category}_{seed}_{index}", category, domain, start, turns, held_back)


def _in_two(category: str, job: Job) -> list[Turn]:
    if category == "miss_func":
        return [(job.request, ()), (_NEW_TOOL, job.calls)]
    return [(job.vague, ()), (job.rest, job.calls)]


def _job(
    random: Random,
    world: World,
    domain: str,
    *,
    vague: bool = False,
    without: str | None = None,
    tool: str | None = None,
) -> Job:
    """A job that can be asked for now: one that can be left vague, without a call of one tool, or around one tool."""
    while True:
        maker = random.choice(list(DOMAINS[domain].jobs.values()))
        job = maker(random, world)
        if vague and not job.vague:
            continue
        if without and any(name == without for name, _ in job.calls):
            continue
        if tool is None or job.tool == tool:
            return job


def _make(world: World, calls: Sequence[Call]) -> None:
    for name, args in calls:
        getattr(world, name)(**args)


def _stock_task(seed: int, index: int, category: str) -> Task:
    """Pick something, ask how much is left, ship it."""
    random = Random(f"{seed}/{index}/{category}")
    start = DOMAINS["stock"].fill(random, _EXTRA["stock"] if category == "long_context" else 0)
    room, item, entry = an_item(random, StockRoom(start))
    city = random.choice(_CITIES)
    count = random.randint(1, entry["count"])
    pick: list[Call] = [
        ("list_items", {"room": room}),
        ("unlock_room", {"room": room}),
        ("pick_item", {"item_id": entry["id"], "count": count}),
    ]
    turns: list[Turn] = [
        (f"Please pick {count} x {item} from the {room}.", pick),
        (f"How many pieces of {item} are left?", [("count_stock", {"item_id": entry["id"]})]),
        *_shipping(category, city),
    ]
    held_back = {"ship_parcel": 3} if category == "miss_func" else {}
    return _as_task(f"playground_{category}_{seed}_{index}", category, "stock", start, turns, held_back)


def _shipping(category: str, city: str) -> list[Turn]:
    ship: list[Call] = [("ship_parcel", {"city": city})]
    if category == "miss_func":
        return [(f"Ship the parcel to {city}.", []), (_NEW_TOOL, ship)]
    if category == "miss_param":
        return [("Ship the parcel.", []), (f"To {city}.", ship)]
    return [(f"Ship the parcel to {city}.", ship)]


def _as_task(
    task_id: str, category: str, domain: str, start: dict[str, Any], turns: Sequence[Turn], held_back: dict[str, int]
) -> Task:
    return Task(
        task_id=task_id,
        category=category,
        turns=tuple(user for user, _ in turns),
        data={
            "domain": domain,
            "start": start,
            "solution": [list(calls) for _, calls in turns],
            "held_back": held_back,
            "names": {},
        },
    )
