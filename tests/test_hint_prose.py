"""What a description in prose says about a value."""

from __future__ import annotations

import pytest

from envtune_agents.hint_rules.prose import enumeration, value_format, value_range, wants_plain_name


@pytest.mark.parametrize(
    ("description", "values"),
    [
        ('The mode. [Enum]: ["on", "off"]', ("on", "off")),
        ("The currency. [Enum]: USD, EUR, GBP", ("USD", "EUR", "GBP")),
        ("The class. Options are: economy, business, first.", ("economy", "business", "first")),
        ("Must be one of {'a', 'b'}", ("a", "b")),
        ("It must be either 'red' or 'blue'.", ("red", "blue")),
        ("Allowed values: low, medium or high.", ("low", "medium", "high")),
        ("Mode ('l' for lines, 'w' for words).", ("l", "w")),
        ("Type of the order (Buy/Sell).", ("Buy", "Sell")),
        ("The sector (e.g., 'Technology').", ()),
        ("The date (MM/YYYY).", ()),
        ("Sizes are readable (e.g., KB, MB).", ()),
        ("The city. [Enum]: Rivermist, Sunset Valley, Paris", ("Rivermist", "Sunset Valley", "Paris")),
        ("One of the best books.", ()),
        ("Either way, it works.", ()),
        ("It is either a name or an id.", ()),
        ("", ()),
    ],
)
def test_enumerations_are_read_only_where_they_are_certain(description: str, values: tuple[str, ...]) -> None:
    assert enumeration(description) == values


def test_a_schema_can_state_what_prose_need_not() -> None:
    assert enumeration("", {"enum": ["a", "b"]}) == ("a", "b")
    assert enumeration("", {"type": "array", "items": {"enum": ["a", "b"]}}) == ("a", "b")
    limits = value_range("", {"minimum": 2})
    assert limits is not None
    assert limits.fits(2)
    assert not limits.fits(1)


@pytest.mark.parametrize(
    ("description", "good", "bad"),
    [
        ("in the format YYYY-MM-DD", "2024-05-06", "May 6th"),
        ("in the format YYYY-MM-DD", "2024-12-31", "2024-13-31"),
        ("The date as 'YYYY-MM-DD HH:MM'", "2024-12-31 23:59", "2024-12-31 24:00"),
        ("Expires (MM/YYYY)", "05/2024", "2024-05"),
        ("The 3 letter code of the airport", "ABC", "Paris"),
    ],
)
def test_formats_are_read(description: str, good: str, bad: str) -> None:
    wanted = value_format(description)
    assert wanted is not None
    assert wanted.fits(good)
    assert not wanted.fits(bad)
    assert value_format("The name of the user.") is None


@pytest.mark.parametrize(
    ("description", "good", "bad"),
    [
        ("between 0 (up) and 1 (down)", 1, 1.5),
        ("from 1 to 5", 5, 0),
        ("Price must be positive values.", 0.5, 0),
        ("It cannot be negative.", 0, -1),
    ],
)
def test_ranges_are_read(description: str, good: float, bad: float) -> None:
    allowed = value_range(description)
    assert allowed is not None
    assert allowed.fits(good)
    assert not allowed.fits(bad)
    assert value_range("The number of items.") is None


def test_names_and_paths_are_told_apart() -> None:
    assert wants_plain_name("Name of the file. No path is allowed.")
    assert wants_plain_name("You can only change one folder level at a time.")
    assert not wants_plain_name("Where to write the report.")
