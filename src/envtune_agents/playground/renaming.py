"""The same tasks with other words for the tools: a held-out generator that asks whether names were learnt by heart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from envtune_agents.types import Task


@dataclass(frozen=True, slots=True)
class OtherName:
    """What a tool is called instead."""

    name: str
    description: str
    args: Mapping[str, str]
    """An argument's own name to the one shown."""


OTHER_NAMES: Mapping[str, OtherName] = {
    "open_folder": OtherName("enter_directory", "Go into a directory.", {"folder": "directory"}),
    "list_files": OtherName("show_directory", "Show what the current directory holds.", {}),
    "read_file": OtherName("print_document", "Print a document of the current directory.", {"file": "document"}),
    "move_file": OtherName(
        "transfer", "Transfer a document of the current directory.", {"file": "document", "to": "destination"}
    ),
    "make_folder": OtherName("create_directory", "Create a directory.", {"folder": "directory"}),
    "sign_in": OtherName("log_on", "Log on to the post box.", {}),
    "find_contact": OtherName("look_up_person", "Look up a person.", {"name": "person", "contact_id": "person_no"}),
    "send_message": OtherName("write_to", "Write to a person.", {"contact_id": "person_no", "text": "words"}),
    "list_messages": OtherName("check_post", "Show the letters that came.", {}),
    "delete_message": OtherName("throw_away", "Throw a letter away.", {"message_id": "letter_no"}),
    "search_trip": OtherName("look_for_tour", "Look for a tour.", {"city": "town", "trip_id": "tour_no"}),
    "add_card": OtherName("set_payment", "Set the card to pay with.", {"number": "digits"}),
    "book_trip": OtherName("reserve", "Reserve places on a tour.", {"trip_id": "tour_no", "seats": "places"}),
    "cancel_trip": OtherName("drop_tour", "Give the places on a tour back.", {"trip_id": "tour_no"}),
    "list_bookings": OtherName("my_tours", "Show the reserved tours.", {}),
    "list_items": OtherName("look_into", "Show what a place holds.", {"room": "place"}),
    "unlock_room": OtherName("open_door", "Open the door of a place.", {"room": "place"}),
    "count_stock": OtherName("how_many", "Tell how many of a thing there are.", {"item_id": "thing_no"}),
    "pick_item": OtherName("take", "Take pieces of a thing.", {"item_id": "thing_no", "count": "pieces"}),
    "ship_parcel": OtherName("post_box", "Post what was taken.", {"city": "town"}),
}
"""Every tool of every domain under another name."""


def renamed(task: Task) -> Task:
    """The same task with every tool and argument under its other name."""
    names = {tool: other.name for tool, other in OTHER_NAMES.items()}
    held_back = {names[tool]: turn for tool, turn in task.data["held_back"].items()}
    solution = [[_call(name, args) for name, args in calls] for calls in task.data["solution"]]
    data = {**task.data, "names": names, "held_back": held_back, "solution": solution}
    return replace(task, task_id=task.task_id.replace("playground_", "playground_renamed_", 1), data=data)


def _call(name: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    other = OTHER_NAMES[name]
    return other.name, {other.args[key]: value for key, value in args.items()}
