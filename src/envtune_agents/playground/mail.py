"""Messages: sign in first; contacts and messages go by ids that a search gives."""

from __future__ import annotations

from typing import Any, ClassVar

from envtune_agents.playground.world import Answer, World


class Mail(World):
    """A mailbox behind a sign-in."""

    TOOLS: ClassVar = ("sign_in", "find_contact", "send_message", "list_messages", "delete_message")
    READS: ClassVar = frozenset({"list_messages"})

    signed_in: bool
    contacts: dict[str, str]
    """A person's name to the contact's id."""
    inbox: dict[str, dict[str, str]]
    """A message's id to `{"from": name, "text": …}`."""
    sent: list[dict[str, Any]]

    def sign_in(self) -> Answer:
        """Sign in to the mailbox."""
        self.signed_in = True
        return {"signed_in": True}

    def find_contact(self, name: str) -> Answer:
        """Find the id of a contact.

        Args:
            name: First name of the person.
        """
        contact = self.contacts.get(name)
        return {"contact_id": contact} if contact else {"error": f"no contact {name}"}

    def send_message(self, contact_id: str, text: str) -> Answer:
        """Send a message.

        Args:
            contact_id: Id of the contact.
            text: The words to send.
        """
        if not self.signed_in:
            return {"error": "access denied"}
        if contact_id not in self.contacts.values():
            return {"error": "bad id"}
        self.sent.append({"to": contact_id, "text": text})
        return {"sent": len(self.sent)}

    def list_messages(self) -> Answer:
        """List the messages in the inbox."""
        return {"messages": self.inbox_lines()} if self.signed_in else {"error": "access denied"}

    def delete_message(self, message_id: str) -> Answer:
        """Delete a message.

        Args:
            message_id: Id of the message.
        """
        if not self.signed_in:
            return {"error": "access denied"}
        if message_id not in self.inbox:
            return {"error": "bad id"}
        del self.inbox[message_id]
        return {"deleted": message_id}

    def inbox_lines(self) -> dict[str, str]:
        """Each message's id to who wrote it and what."""
        return {number: f"{message['from']}: {message['text']}" for number, message in self.inbox.items()}
