"""A small stock room: the world of the playground, with rules worth learning and errors worth a hint."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any


class StockRoom:
    """Rooms hold items; a locked room gives nothing out; a parcel holds what was picked until it is shipped.

    Every method is a tool. Errors are answered as `{"error": …}`, curtly, as real tools do.
    """

    def __init__(self, rooms: Mapping[str, Mapping[str, Any]]) -> None:
        """`rooms` maps a room to `{"locked": bool, "items": {name: {"id": str, "count": int}}}`."""
        self.rooms: dict[str, Any] = deepcopy(dict(rooms))
        self.parcel: dict[str, int] = {}
        self.shipped: list[dict[str, Any]] = []

    def list_items(self, room: str) -> dict[str, Any]:
        """List the items of one room with their ids.

        Args:
            room: Name of the room.
        """
        if room not in self.rooms:
            return {"error": f"no room {room}"}
        return {"items": {name: item["id"] for name, item in self.rooms[room]["items"].items()}}

    def unlock_room(self, room: str) -> dict[str, Any]:
        """Unlock a room, so that items can be picked from it.

        Args:
            room: Name of the room.
        """
        if room not in self.rooms:
            return {"error": f"no room {room}"}
        if not self.rooms[room]["locked"]:
            return {"error": "already unlocked"}
        self.rooms[room]["locked"] = False
        return {"room": room, "locked": False}

    def count_stock(self, item_id: str) -> dict[str, Any]:
        """Tell how many pieces of an item are in stock.

        Args:
            item_id: Id of the item, as list_items gives it.
        """
        _, item = self._find(item_id)
        return {"error": f"no item {item_id}"} if item is None else {"item_id": item_id, "count": item["count"]}

    def pick_item(self, item_id: str, count: int) -> dict[str, Any]:
        """Pick pieces of an item into the open parcel. The item's room must be unlocked.

        Args:
            item_id: Id of the item, as list_items gives it.
            count: Number of pieces, at least 1.
        """
        room, item = self._find(item_id)
        if room is None or item is None:
            return {"error": f"no item {item_id}"}
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            return {"error": "bad count"}
        if self.rooms[room]["locked"]:
            return {"error": "access denied"}
        if item["count"] < count:
            return {"error": "not enough in stock"}
        item["count"] -= count
        self.parcel[item_id] = self.parcel.get(item_id, 0) + count
        return {"parcel": dict(self.parcel)}

    def ship_parcel(self, city: str) -> dict[str, Any]:
        """Ship the open parcel to a city. The parcel must hold something.

        Args:
            city: Name of the city.
        """
        if not self.parcel:
            return {"error": "nothing to ship"}
        self.shipped.append({"city": city, "contents": dict(self.parcel)})
        self.parcel.clear()
        return {"shipment": len(self.shipped), "city": city}

    def state(self) -> dict[str, Any]:
        """The whole world as one JSON value."""
        return deepcopy({"rooms": self.rooms, "parcel": self.parcel, "shipped": self.shipped})

    @classmethod
    def at(cls, state: Mapping[str, Any]) -> StockRoom:
        """A stock room in the given state."""
        room = cls(state["rooms"])
        room.parcel = dict(state["parcel"])
        room.shipped = deepcopy(list(state["shipped"]))
        return room

    def _find(self, item_id: str) -> tuple[str | None, dict[str, Any] | None]:
        for name, room in self.rooms.items():
            for item in room["items"].values():
                if item["id"] == item_id:
                    return name, item
        return None, None


TOOL_NAMES = ("list_items", "unlock_room", "count_stock", "pick_item", "ship_parcel")
