"""Generated tasks in the four categories of BFCL V3 multi-turn, each with the calls that solve it.

As there, `miss_func` holds a needed tool back until the user brings it, `miss_param` leaves a needed value out until
the user says it, and `long_context` fills the world with things that do not matter.
"""

from __future__ import annotations

from random import Random
from typing import Any

from envtune_agents.errors import TaskError, unknown
from envtune_agents.types import Task

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")

_ITEMS = ("lamp", "kettle", "clock", "vase", "chair", "mirror", "radio", "globe", "basket", "ladder", "drum", "quilt")
_ROOMS = ("cellar", "attic", "garage", "annex")
_CITIES = ("Oslo", "Lima", "Kyoto", "Accra", "Porto", "Quito")
_EXTRA_ITEMS = 60

Call = tuple[str, dict[str, Any]]


def playground_tasks(seed: int = 0, n: int = 8, category: str | None = None) -> list[Task]:
    """`n` tasks drawn from `seed`, of one category or of all four in turn. The same arguments give the same tasks."""
    if category is not None and category not in CATEGORIES:
        raise TaskError(unknown("playground category", category, CATEGORIES))
    categories = [category] if category else list(CATEGORIES)
    return [_task(seed, index, categories[index % len(categories)]) for index in range(n)]


def _task(seed: int, index: int, category: str) -> Task:
    random = Random(f"{seed}/{index}/{category}")
    rooms = _rooms(random, extra=_EXTRA_ITEMS if category == "long_context" else 0)
    room = random.choice(_ROOMS)
    item = random.choice(sorted(name for name in rooms[room]["items"] if name in _ITEMS))
    entry, city = rooms[room]["items"][item], random.choice(_CITIES)
    count = random.randint(1, entry["count"])
    pick: list[Call] = [
        ("list_items", {"room": room}),
        ("unlock_room", {"room": room}),
        ("pick_item", {"item_id": entry["id"], "count": count}),
    ]
    turns: list[tuple[str, list[Call]]] = [
        (f"Please pick {count} x {item} from the {room}.", pick),
        (f"How many pieces of {item} are left?", [("count_stock", {"item_id": entry["id"]})]),
        *_shipping(category, city),
    ]
    return Task(
        task_id=f"playground_{category}_{seed}_{index}",
        category=category,
        turns=tuple(user for user, _ in turns),
        data={
            "rooms": rooms,
            "solution": [calls for _, calls in turns],
            "held_back": {"ship_parcel": 3} if category == "miss_func" else {},
        },
    )


def _shipping(category: str, city: str) -> list[tuple[str, list[Call]]]:
    ship: list[Call] = [("ship_parcel", {"city": city})]
    if category == "miss_func":
        return [(f"Ship the parcel to {city}.", []), ("There is a new tool now. Please go on.", ship)]
    if category == "miss_param":
        return [("Ship the parcel.", []), (f"To {city}.", ship)]
    return [(f"Ship the parcel to {city}.", ship)]


def _rooms(random: Random, extra: int) -> dict[str, dict[str, Any]]:
    names = random.sample(_ITEMS, k=len(_ITEMS))
    rooms: dict[str, dict[str, Any]] = {room: {"locked": True, "items": {}} for room in _ROOMS}
    for index, name in enumerate([*names, *(f"spare part {number}" for number in range(extra))]):
        number = random.randint(100, 999)
        item = {"id": f"{name[0].upper()}{index}-{number}", "count": random.randint(2, 9)}
        rooms[_ROOMS[index % len(_ROOMS)]]["items"][name] = item
    return rooms
