"""What the site adds to the pages in this folder: examples, integrations, changes, and the commands with their options.

Links between the files of the repository become links between pages, so each page works on both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """The pages of this folder and those made of files elsewhere."""
    for uri, text in made_pages():
        files.append(File.generated(config, uri, content=text))
    return files


def made_pages() -> Iterator[tuple[str, str]]:
    yield "examples.md", examples_page()
    yield "reference/commands.md", commands_page()
    yield "changelog.md", repository_links(ROOT / "CHANGELOG.md", "changelog.md")
    yield "how-to/deploy.md", repository_links(ROOT / "examples" / "deploy" / "README.md", "how-to/deploy.md")
    for readme in sorted(ROOT.glob("integrations/*/README.md")):
        uri = f"integrations/{readme.parent.name}.md"
        yield uri, repository_links(readme, uri)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with links that stay inside the site."""
    source = ROOT / "docs" / page.file.src_uri
    return rewritten(markdown, source.parent, page.file.src_uri) if source.exists() else markdown


def repository_links(file: Path, uri: str) -> str:
    return rewritten(file.read_text(), file.parent, uri)


def rewritten(markdown: str, folder: Path, uri: str) -> str:
    """Each link to a file of the repository as a link from the page `uri`; without a page for it, only its name."""

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = (folder / target).resolve()
        if not place.exists() or not place.is_relative_to(ROOT):
            return match[0]
        found = page_of(place.relative_to(ROOT).as_posix())
        if found is None:
            return text if text.startswith("`") else f"{text} (`{place.relative_to(ROOT)}`)"
        name, _, own = found.partition("#")
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(uri) or '.')}{'#' + own if own else anchor})"

    return LINK.sub(replaced, markdown)


def page_of(path: str) -> str | None:
    """The page that shows a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith(".py") and path.count("/") == 1:
        return f"examples.md#{Path(path).stem}"
    if match := re.fullmatch(r"integrations/(\w+)(/README\.md)?", path):
        return f"integrations/{match[1]}.md"
    if path in ("examples/deploy", "examples/deploy/README.md"):
        return "how-to/deploy.md"
    return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}.get(path)


def examples_page() -> str:
    """Every example with its source; the last comment is what it prints."""
    parts = ["# Examples", "Each runs offline as it stands; the tests run all of them and compare what they print."]
    for file in sorted((ROOT / "examples").glob("[0-9]*.py")):
        number, _, name = file.stem.partition("_")
        heading = f"## {int(number)}. {name.replace('_', ' ')} {{ #{file.stem} }}"
        parts += [heading, f"`python examples/{file.name}`", f"```python\n{file.read_text().strip()}\n```"]
    return "\n\n".join(parts)


def commands_page() -> str:
    """Every command with its options, from the command line itself."""
    from typer.main import get_command

    from envtune_agents.cli import app

    parts = [
        "# Commands",
        "`envtune --debug COMMAND …` shows the traceback of a user error. Exit codes are on the page "
        "[Scripts, CI and completion](../how-to/scripts.md).",
    ]
    return "\n\n".join([*parts, *command_parts(get_command(app), "envtune")])


def command_parts(command: Any, path: str) -> Iterator[str]:
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if getattr(inner, "commands", None):
            yield from command_parts(inner, f"{path} {name}")
            continue
        yield f"## {path} {name}"
        yield str(inner.help or "")
        yield options_table(inner)


def options_table(command: Any) -> str:
    rows = [row for parameter in command.params if (row := option_row(parameter))]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def option_row(parameter: Any) -> str | None:
    if "--help" in parameter.opts:
        return None
    named = parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)
    default = "required" if parameter.required else parameter.default
    shown = (
        "" if default is None or default is False or callable(default) else f"`{getattr(default, 'value', default)}`"
    )
    meaning = str(getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| `{named}` | {shown} | {meaning} |"
