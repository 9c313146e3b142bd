"""A small stock room: rooms to unlock, items to pick by id, a parcel to ship."""

from __future__ import annotations

from typing import Any, ClassVar

from envtune_agents.playground.world import Answer, World


class StockRoom(World):
    """Rooms hold items; a locked room gives nothing out; a parcel holds what was picked until it is shipped."""

    TOOLS: ClassVar = ("list_items", "unlock_room", "count_stock", "pick_item", "ship_parcel")
    READS: ClassVar = frozenset({"count_stock"})

    rooms: dict[str, Any]
    """A room's name to `{"locked": bool, "items": {name: {"id": str, "count": int}}}`."""
    parcel: dict[str, int]
    shipped: list[dict[str, Any]]

    def list_items(self, room: str) -> Answer:
        """List the items of one room with their ids.

        Args:
            room: Name of the room.
        """
        if room not in self.rooms:
            return {"error": f"no room {room}"}
        return {"items": {name: item["id"] for name, item in self.rooms[room]["items"].items()}}

    def unlock_room(self, room: str) -> Answer:
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

    def count_stock(self, item_id: str) -> Answer:
        """Tell how many pieces of an item are in stock.

        Args:
            item_id: Id of the item, as list_items gives it.
        """
        _, item = self._find(item_id)
        return {"error": f"no item {item_id}"} if item is None else {"item_id": item_id, "count": item["count"]}

    def pick_item(self, item_id: str, count: int) -> Answer:
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

    def ship_parcel(self, city: str) -> Answer:
        """Ship the open parcel to a city. The parcel must hold something.

        Args:
            city: Name of the city.
        """
        if not self.parcel:
            return {"error": "nothing to ship"}
        self.shipped.append({"city": city, "contents": dict(self.parcel)})
        self.parcel.clear()
        return {"shipment": len(self.shipped), "city": city}

    def _find(self, item_id: str) -> tuple[str | None, dict[str, Any] | None]:
        for name, room in self.rooms.items():
            for item in room["items"].values():
                if item["id"] == item_id:
                    return name, item
        return None, None
