"""Writes docs/reference: the commands from ``--help``, the Python package from its docstrings.

    PYTHONPATH=target/python PYTHON scripts/reference.py target/release/regraft
    PYTHONPATH=target/python PYTHON scripts/reference.py target/release/regraft --check    # changes nothing

``make reference`` does the first; a test does the second.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/reference"
NOTE = "<!-- Written by scripts/reference.py (`make reference`): change the source, not this page. -->\n"
COMMAND = re.compile(r"^  ([a-z]+)  ", re.M)
SECTION = re.compile(r"^(Args|Returns|Raises|Warns|Yields|Example|Examples|Attributes):$")


def commands(binary: Path) -> str:
    """The page of all commands, each as ``regraft help COMMAND`` says it."""
    page = [f"# Commands\n\n{NOTE}\nWhat `regraft --help` and `regraft help COMMAND` print.\n"]
    for words, text in helps(binary, ()):
        title = " ".join(("regraft", *words))
        page.append(f"## {title}\n\n```text\n{text}\n```\n")
    return "\n".join(page)


def helps(binary: Path, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The help of a command, then that of the commands below it."""
    done = subprocess.run([binary, *words, "--help"], capture_output=True, text=True, check=True)
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    yield words, text
    _, _, below = text.partition("\nCommands:\n")
    for name in COMMAND.findall(below.partition("\nOptions:\n")[0]):
        if name != "help":
            yield from helps(binary, (*words, name))


def package() -> str:
    """The page of the package: what ``regraft.__all__`` names, in groups."""
    import regraft

    public = {name: getattr(regraft, name) for name in sorted(regraft.__all__) if not name.startswith("_")}
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors and warnings": []}
    for name, value in public.items():
        if not inspect.isclass(value):
            groups["Functions"].append(function(f"regraft.{name}", value, "###"))
        elif issubclass(value, Exception):
            groups["Errors and warnings"].append(described(f"### regraft.{name}", value))
        else:
            groups["Classes"].append(class_(name, value))
    head = "The public names of the package `regraft`. [The guide](../python.md) shows how they are used."
    page = [f"# Python\n\n{NOTE}\n{head}\n"]
    for title, entries in groups.items():
        page.append(f"## {title}\n")
        page.extend(entries)
    return "\n".join(page)


def class_(name: str, value: type) -> str:
    """A class with its own public fields, methods and properties."""
    parts = [described(f"### regraft.{name}", value)]
    documented = fields(value)
    # The documentation of a default, such as of `int`, says nothing about the field.
    undocumented = inspect.get_annotations(value)
    members = {**dict.fromkeys(documented), **vars(value)}
    for attribute, member in sorted(members.items()):
        title = f"{name}.{attribute}"
        if attribute in documented:
            type_, text = documented[attribute]
            parts.append(f"#### {title}\n\n`{type_}`: {markdown(text)}\n")
        elif attribute.startswith("_") or attribute in undocumented or not inspect.getdoc(member):
            continue
        elif callable(member) or isinstance(member, (staticmethod, classmethod)):
            parts.append(function(title, getattr(value, attribute), "####"))
        else:
            parts.append(described(f"#### {title}", member))
    return "\n".join(parts)


def fields(value: type) -> dict[str, tuple[str, str]]:
    """The fields of a class that a text behind them describes, with their types."""
    try:
        source = textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):
        # Classes of the native module have none.
        return {}
    (defined,) = ast.parse(source).body
    assert isinstance(defined, ast.ClassDef)
    found = {}
    for field, behind in itertools.pairwise(defined.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            text = inspect.cleandoc(str(behind.value.value))
            found[field.target.id] = (ast.unparse(field.annotation), text)
    return found


def function(title: str, value: Any, level: str) -> str:
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = "(...)"
    # Annotations are texts, since the package postpones them; addresses would change from run to run.
    signature = re.sub(r"'([^']*)'(?=[,)=\s]|$)", unquoted, signature)
    signature = re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"\1", signature)
    call = f"{title}{signature}"
    if len(call) > 100:
        call = broken(call)
    return f"{level} {title}\n\n```text\n{call}\n```\n\n{markdown(inspect.getdoc(value) or '')}\n"


def unquoted(found: re.Match[str]) -> str:
    """An annotation without its quotes; a text that is a default keeps them."""
    before = found.string[: found.start()].rstrip()
    return found[1] if before.endswith((":", "->")) else found[0]


def broken(call: str) -> str:
    """A long signature with a line for each parameter: at the commas outside of brackets and quotes."""
    depth, quoted, out = 0, False, []
    for letter in call:
        quoted ^= letter == "'"
        if quoted:
            out.append(letter)
            continue
        depth += letter in "([{"
        if letter in ")]}":
            depth -= 1
            if depth == 0 and letter == ")":
                out.append(",\n")
        out.append(letter)
        if letter == "(" and depth == 1:
            out.append("\n    ")
        if letter == "," and depth == 1:
            out.append("\n   ")
    return "".join(out)


def described(title: str, value: Any) -> str:
    return f"{title}\n\n{markdown(inspect.getdoc(value) or '')}\n"


def markdown(text: str) -> str:
    """A docstring in the style of this package as Markdown."""
    text = re.sub(r":(?:class|meth|func|attr|data|exc|mod):`~?([^`]*)`", r"`\1`", text)
    text = re.sub(r"``([^`]*)``", r"`\1`", text)
    out: list[str] = []
    lines = text.splitlines()
    place = 0
    while place < len(lines):
        line = lines[place]
        place += 1
        section = SECTION.match(line)
        if line.strip().startswith(".. code-block::"):
            taken, place = indented(lines, place)
            out += ["```text", *textwrap.dedent("\n".join(taken)).strip("\n").splitlines(), "```"]
        elif section and section[1].startswith("Example"):
            taken, place = indented(lines, place)
            out += ["**Example**", "", "```pycon", *without_marks(taken), "```"]
        elif section:
            taken, place = indented(lines, place)
            out += [
                f"**{section[1]}**",
                "",
                *(entries(taken) if section[1] != "Returns" else dedented(taken)),
            ]
        elif line.startswith(">>>"):
            taken = [line]
            while place < len(lines) and lines[place].strip():
                taken.append(lines[place])
                place += 1
            out += ["```pycon", *without_marks(taken), "```"]
        else:
            out.append(line)
    return "\n".join(out).strip()


def indented(lines: list[str], place: int) -> tuple[list[str], int]:
    """The lines from ``place`` on that are indented or empty, and where they end."""
    end = place
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
        end += 1
    taken = lines[place:end]
    while taken and not taken[-1].strip():
        taken.pop()
    return taken, end if end == len(lines) else end - (not lines[end - 1].strip())


def dedented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def without_marks(lines: list[str]) -> list[str]:
    return [re.sub(r"\s*# doctest:.*", "", line) for line in dedented(lines)]


def entries(lines: list[str]) -> list[str]:
    """``name: text`` as list items; what goes on is indented deeper."""
    items: list[str] = []
    for line in dedented(lines):
        name, colon, rest = line.partition(": ")
        if not line.startswith(" ") and colon:
            items.append(f"- `{name}`: {rest}")
        elif line.strip() and items:
            items.append(f"  {line.strip()}")
        elif line.strip():
            items.append(f"- {line.strip()}")
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--check", action="store_true", help="fail when the pages are not current")
    arguments = parser.parse_args()
    pages = {"command-line.md": commands(arguments.binary.resolve()), "python.md": package()}
    stale = []
    for name, text in pages.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(text)
    if stale and arguments.check:
        sys.exit(f"error: not current: {', '.join(stale)} (run `make reference`)")
    print(f"written: {', '.join(stale)}" if stale else "all pages are current")


if __name__ == "__main__":
    main()
