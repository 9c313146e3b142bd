"""A small file system: a folder must be open before its files can be read or moved."""

from __future__ import annotations

from typing import ClassVar

from envtune_agents.playground.world import Answer, World


class Files(World):
    """Folders, one level deep, with text files in them."""

    TOOLS: ClassVar = ("open_folder", "list_files", "read_file", "move_file", "make_folder")
    READS: ClassVar = frozenset({"read_file"})
    UNCHECKED: ClassVar = frozenset({"here"})

    folders: dict[str, dict[str, str]]
    """A folder's name to its files: name to text."""
    here: str
    """The open folder; "" when none is."""

    def open_folder(self, folder: str) -> Answer:
        """Open a folder.

        Args:
            folder: Name of the folder.
        """
        if folder not in self.folders:
            return {"error": "not found"}
        self.here = folder
        return {"open": folder}

    def list_files(self) -> Answer:
        """List the files of the open folder."""
        return {"files": sorted(self.folders[self.here])} if self.here else {"error": "bad state"}

    def read_file(self, file: str) -> Answer:
        """Read a file of the open folder.

        Args:
            file: Name of the file.
        """
        if file not in self.folders.get(self.here, {}):
            return {"error": "not found"}
        return {"file": file, "text": self.folders[self.here][file]}

    def move_file(self, file: str, to: str) -> Answer:
        """Move a file of the open folder to another folder.

        Args:
            file: Name of the file.
            to: Name of the other folder.
        """
        if file not in self.folders.get(self.here, {}):
            return {"error": "not found"}
        if to not in self.folders:
            return {"error": "bad target"}
        self.folders[to][file] = self.folders[self.here].pop(file)
        return {"moved": file, "to": to}

    def make_folder(self, folder: str) -> Answer:
        """Make a new, empty folder.

        Args:
            folder: Name of the folder.
        """
        if folder in self.folders:
            return {"error": "exists"}
        self.folders[folder] = {}
        return {"made": folder}
