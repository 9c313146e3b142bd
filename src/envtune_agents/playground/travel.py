"""Bookings: a trip's id comes from a search, and nothing is booked without a card."""

from __future__ import annotations

from typing import Any, ClassVar

from envtune_agents.playground.world import Answer, World


class Travel(World):
    """Trips to search, book and cancel, paid with a card."""

    TOOLS: ClassVar = ("search_trip", "add_card", "book_trip", "cancel_trip", "list_bookings")
    READS: ClassVar = frozenset({"search_trip", "list_bookings"})

    trips: dict[str, dict[str, Any]]
    """A city to `{"trip_id": str, "price": int}`."""
    card: int | None
    """Number of the card; None before one was added."""
    booked: dict[str, int]
    """A trip's id to the number of seats."""

    def search_trip(self, city: str) -> Answer:
        """Find the trip to a city, with its id and price.

        Args:
            city: Name of the city.
        """
        trip = self.trips.get(city)
        return {"city": city, **trip} if trip else {"error": f"no trip to {city}"}

    def add_card(self, number: int) -> Answer:
        """Add the card that pays.

        Args:
            number: Number of the card.
        """
        if not isinstance(number, int) or isinstance(number, bool) or not 1000 <= number <= 9999:
            return {"error": "bad number"}
        self.card = number
        return {"card": number}

    def book_trip(self, trip_id: str, seats: int) -> Answer:
        """Book seats on a trip.

        Args:
            trip_id: Id of the trip.
            seats: Number of seats.
        """
        if trip_id not in (trip["trip_id"] for trip in self.trips.values()):
            return {"error": "bad id"}
        if self.card is None:
            return {"error": "payment failed"}
        if not isinstance(seats, int) or isinstance(seats, bool) or not 1 <= seats <= 9:
            return {"error": "bad seats"}
        self.booked[trip_id] = self.booked.get(trip_id, 0) + seats
        return {"booked": trip_id, "seats": self.booked[trip_id]}

    def cancel_trip(self, trip_id: str) -> Answer:
        """Cancel all seats on a trip.

        Args:
            trip_id: Id of the trip.
        """
        if trip_id not in self.booked:
            return {"error": "bad id"}
        return {"cancelled": trip_id, "seats": self.booked.pop(trip_id)}

    def list_bookings(self) -> Answer:
        """List the booked trips with their seats."""
        return {"bookings": dict(self.booked)}
