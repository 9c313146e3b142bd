"""The playground's domains: a world for each, how it is filled, and the jobs that a user can ask for in it.

Three domains are for training; the stock room is held out, to see what carries over to tools that were never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from envtune_agents.playground.files import Files
from envtune_agents.playground.mail import Mail
from envtune_agents.playground.stock import StockRoom
from envtune_agents.playground.travel import Travel
from envtune_agents.playground.world import World

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """One thing a user asks for."""

    request: str
    """The whole request in one message."""
    calls: tuple[Call, ...]
    """The calls that do it, in the world as it is now."""
    tool: str
    """The tool that `miss_func` holds back."""
    vague: str = ""
    """The request without a needed value; "" when nothing can be left out."""
    rest: str = ""
    """The message that brings the value."""


JobMaker = Callable[[Random, Any], Job]


@dataclass(frozen=True, slots=True)
class Domain:
    """A family of worlds and what can be asked in them."""

    world: type[World]
    fill: Callable[[Random, int], dict[str, Any]]
    """`fill(random, extra)`: a world's first state, with that many things that do not matter."""
    jobs: Mapping[str, JobMaker]
    """What a user can ask for, by name; each looks at the world as it is."""


_NAMES = ("Mia", "Ben", "Ada", "Tom", "Zoe", "Sam", "Eva", "Max", "Ida", "Leo")
_WORDS = ("see you at five", "the train is late", "call me later", "happy birthday", "lunch is ready", "thank you")
_FOLDERS = ("docs", "photos", "music", "work", "notes")
_FILES = ("plan.txt", "list.txt", "song.txt", "trip.txt", "cake.txt", "tax.txt", "poem.txt", "team.txt")
_NEW_FOLDERS = ("archive", "backup", "old", "temp")
_CITIES = ("Oslo", "Lima", "Kyoto", "Accra", "Porto", "Quito", "Delhi", "Malmo")


def _fill_files(random: Random, extra: int) -> dict[str, Any]:
    folders: dict[str, dict[str, str]] = {folder: {} for folder in _FOLDERS[:4]}
    names = [*random.sample(_FILES, k=len(_FILES)), *(f"scan{number}.txt" for number in range(extra))]
    for index, name in enumerate(names):
        folders[_FOLDERS[index % 4]][name] = f"{random.choice(_WORDS)} {random.randint(10, 99)}"
    return {"folders": folders, "here": ""}


def _a_file(random: Random, world: Files) -> tuple[str, str]:
    places = [(folder, file) for folder, files in world.folders.items() for file in files if file in _FILES]
    return random.choice(places)


def _opened(world: Files, folder: str) -> list[Call]:
    return [] if world.here == folder else [("open_folder", {"folder": folder})]


def _read(random: Random, world: Files) -> Job:
    folder, file = _a_file(random, world)
    calls = (*_opened(world, folder), ("read_file", {"file": file}))
    return Job(
        f"What does {file} in {folder} say?", calls, "read_file", f"Read a file in {folder} to me.", f"I mean {file}."
    )


def _move(random: Random, world: Files) -> Job:
    folder, file = _a_file(random, world)
    to = random.choice([name for name in world.folders if name != folder])
    calls = (*_opened(world, folder), ("move_file", {"file": file, "to": to}))
    return Job(
        f"Move {file} from {folder} to {to}.", calls, "move_file", f"Move {file} out of {folder}.", f"Put it in {to}."
    )


def _move_to_new(random: Random, world: Files) -> Job:
    folder, file = _a_file(random, world)
    to = random.choice([name for name in _NEW_FOLDERS if name not in world.folders])
    make: Call = ("make_folder", {"folder": to})
    calls = (make, *_opened(world, folder), ("move_file", {"file": file, "to": to}))
    vague = f"Move {file} from {folder} to a new folder."
    return Job(f"Move {file} from {folder} to a new folder {to}.", calls, "move_file", vague, f"Call it {to}.")


def _fill_mail(random: Random, extra: int) -> dict[str, Any]:
    people = [*_NAMES, *(f"Guest{number}" for number in range(extra))]
    senders = [*random.sample(_NAMES, k=3), *(f"Guest{number}" for number in range(extra))]
    random.shuffle(senders)
    contacts = {name: f"c{number}" for name, number in zip(people, _numbers(random, len(people)), strict=True)}
    numbers = _numbers(random, len(senders))
    inbox = {f"m{n}": {"from": name, "text": random.choice(_WORDS)} for name, n in zip(senders, numbers, strict=True)}
    return {"signed_in": False, "contacts": contacts, "inbox": inbox, "sent": []}


def _numbers(random: Random, count: int) -> list[int]:
    return random.sample(range(100, 1000), k=count)


def _signed_in(world: Mail) -> list[Call]:
    return [] if world.signed_in else [("sign_in", {})]


def _send(random: Random, world: Mail) -> Job:
    name, text = random.choice(_NAMES), random.choice(_WORDS)
    send: Call = ("send_message", {"contact_id": world.contacts[name], "text": text})
    calls = (*_signed_in(world), ("find_contact", {"name": name}), send)
    vague, rest = f"Send a message to {name}.", f"Write '{text}'."
    return Job(f"Send '{text}' to {name}.", calls, "send_message", vague, rest)


def _delete(random: Random, world: Mail) -> Job:
    known = [(number, message["from"]) for number, message in world.inbox.items() if message["from"] in _NAMES]
    if not known:
        return _send(random, world)
    number, name = random.choice(known)
    calls = (*_signed_in(world), ("list_messages", {}), ("delete_message", {"message_id": number}))
    vague = "Delete a message in my inbox."
    return Job(f"Delete the message from {name}.", calls, "delete_message", vague, f"The one from {name}.")


def _inbox(random: Random, world: Mail) -> Job:
    return Job("What is in my inbox?", (*_signed_in(world), ("list_messages", {})), "list_messages")


def _fill_travel(random: Random, extra: int) -> dict[str, Any]:
    cities = [*_CITIES, *(f"Town{number}" for number in range(extra))]
    trips = {
        city: {"trip_id": f"t{number}", "price": random.randint(20, 400)}
        for city, number in zip(cities, _numbers(random, len(cities)), strict=True)
    }
    booked = {trips[city]["trip_id"]: random.randint(1, 4) for city in cities[len(_CITIES) :]}
    return {"trips": trips, "card": None, "booked": booked}


def _book(random: Random, world: Travel) -> Job:
    city, seats = random.choice(_CITIES), random.randint(1, 5)
    card = random.randint(1000, 9999)
    pay: list[Call] = [] if world.card else [("add_card", {"number": card})]
    trip_id = world.trips[city]["trip_id"]
    calls = (("search_trip", {"city": city}), *pay, ("book_trip", {"trip_id": trip_id, "seats": seats}))
    with_card = "" if world.card else f" My card is {card}."
    vague, rest = f"Book a trip to {city}.{with_card}", f"{seats} seats, please."
    return Job(f"Book {seats} seats to {city}.{with_card}", calls, "book_trip", vague, rest)


def _price(random: Random, world: Travel) -> Job:
    city = random.choice(_CITIES)
    return Job(
        f"What does a trip to {city} cost?",
        (("search_trip", {"city": city}),),
        "search_trip",
        "What does a trip cost?",
        f"A trip to {city}.",
    )


def _cancel(random: Random, world: Travel) -> Job:
    booked = [city for city in _CITIES if world.trips[city]["trip_id"] in world.booked]
    if not booked:
        return _book(random, world)
    city = random.choice(booked)
    cancel: Call = ("cancel_trip", {"trip_id": world.trips[city]["trip_id"]})
    calls = (("search_trip", {"city": city}), cancel)
    return Job(f"Cancel my trip to {city}.", calls, "cancel_trip", "Cancel a trip.", f"The one to {city}.")


def _bookings(random: Random, world: Travel) -> Job:
    return Job("Which trips have I booked?", (("list_bookings", {}),), "list_bookings")


_ITEMS = ("lamp", "kettle", "clock", "vase", "chair", "mirror", "radio", "globe", "basket", "ladder", "drum", "quilt")
_ROOMS = ("cellar", "attic", "garage", "annex")


def fill_stock(random: Random, extra: int) -> dict[str, Any]:
    """A stock room's first state."""
    names = random.sample(_ITEMS, k=len(_ITEMS))
    rooms: dict[str, dict[str, Any]] = {room: {"locked": True, "items": {}} for room in _ROOMS}
    for index, name in enumerate([*names, *(f"spare part {number}" for number in range(extra))]):
        number = random.randint(100, 999)
        item = {"id": f"{name[0].upper()}{index}-{number}", "count": random.randint(2, 9)}
        rooms[_ROOMS[index % len(_ROOMS)]]["items"][name] = item
    return {"rooms": rooms, "parcel": {}, "shipped": []}


def an_item(random: Random, world: StockRoom) -> tuple[str, str, dict[str, Any]]:
    """A room, an item in it, and the item's record."""
    room = random.choice(_ROOMS)
    name = random.choice(sorted(name for name in world.rooms[room]["items"] if name in _ITEMS))
    return room, name, world.rooms[room]["items"][name]


DOMAINS: Mapping[str, Domain] = {
    "files": Domain(Files, _fill_files, {"read": _read, "move": _move, "move_to_new": _move_to_new}),
    "mail": Domain(Mail, _fill_mail, {"send": _send, "delete": _delete, "inbox": _inbox}),
    "travel": Domain(Travel, _fill_travel, {"book": _book, "price": _price, "cancel": _cancel, "bookings": _bookings}),
    "stock": Domain(StockRoom, fill_stock, {}),
}
"""Every domain by name. The stock room's tasks all have one plan, which `tasks` holds."""

TRAINING_DOMAINS = ("files", "mail", "travel")
HELD_OUT_DOMAIN = "stock"
