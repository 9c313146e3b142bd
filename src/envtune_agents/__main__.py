"""`python -m envtune_agents`, and the command `envtune`: Ctrl-C has an answer even before the commands are imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from envtune_agents.cli import main as command_line
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
