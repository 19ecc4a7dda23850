"""The container file, as far as it can be told without building it: what it copies is there and not left out
of the context, and what it starts is what the command line has.
"""

from __future__ import annotations

import fnmatch
import re

from conftest import Cli
from exporting import ROOT

FILE = ROOT / "deploy/Containerfile"


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def said(manifest: str, key: str) -> list[str]:
    """The texts of a line of a manifest of Cargo."""
    lines = (ROOT / manifest).read_text().splitlines()
    return re.findall(r'"([^"]+)"', next(line for line in lines if line.startswith(f"{key} = ")))


def is_left_out(path: str) -> bool:
    """Whether the ignore file keeps a path out of the context: a pattern names it, or a folder above it."""
    ignored = (ROOT / "deploy/Containerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatch(place, pattern.removeprefix("**/")) or fnmatch.fnmatch(place, pattern)
        for pattern in patterns
        for place in above
    )


def test_what_is_copied_is_there() -> None:
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists() and not is_left_out(source), source
    # The workspace is read whole, so all its members must be there.
    members = [path for pattern in said("Cargo.toml", "members") for path in ROOT.glob(pattern)]
    assert members
    for path in [*members, ROOT / "Cargo.lock", ROOT / "crates/server/src/inspector.html"]:
        assert not is_left_out(path.relative_to(ROOT).as_posix()), path
    assert is_left_out("target") and is_left_out(".git") and is_left_out("fuzz")


def test_the_image_has_the_compiler_that_the_crates_ask_for() -> None:
    (asked,) = said("Cargo.toml", "rust-version")
    image = next(rest for word, rest in instructions() if word == "FROM" and "rust:" in rest)
    found = re.search(r"rust:(\d+)\.(\d+)", image)
    assert found is not None
    assert [int(part) for part in found.groups()] >= [int(part) for part in asked.split(".")[:2]]


def test_what_is_started_is_the_command() -> None:
    built = next(rest for word, rest in instructions() if word == "RUN")
    # The package, and then its program.
    names = re.findall(r'^name = "([^"]+)"', (ROOT / "crates/cli/Cargo.toml").read_text(), re.MULTILINE)
    assert f"-p {names[0]}" in built and "--release" in built
    taken = next(rest for word, rest in instructions() if word == "COPY" and rest.startswith("--from=build"))
    source, target = taken.split()[1:]
    assert source == f"/src/target/release/{names[1]}"
    entry = next(rest for word, rest in instructions() if word == "ENTRYPOINT")
    assert entry == f'["{target}", "serve"]'
    stages = [rest.split() for word, rest in instructions() if word == "FROM"]
    assert stages[0][-1] == "build" and "nonroot" in stages[-1][0]


def test_its_example_has_options_of_the_command(cli: Cli) -> None:
    known = cli.call("serve", "--help")
    text = "\n".join(line.lstrip("# ") for line in FILE.read_text().splitlines() if line.startswith("#"))
    example = text[text.index("podman run") : text.index("For x86-64")].split("regraft /mnt")[1]
    options = re.findall(r"(--[a-z-]+)", example)
    assert options
    for option in options:
        assert option in known, option
