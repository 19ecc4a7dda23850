"""What mkdocs.yml needs beyond mkdocs: pages from outside of docs/, links that leave it, Rust as in rustdoc.

The texts read well as they are, in an editor and on GitHub; what differs on the site is changed when it is
built.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Documents of the root that are pages of the site.
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^```rust(?:,\w+)*\n(.*?)^```$", re.M | re.S)
# Spans of code may look like links.
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)

log = get_plugin_logger("links")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = next((ROOT / name for name, target in PAGES.items() if target == page.file.src_uri), None)
    folder = source.parent if source else (DOCS / page.file.src_uri).parent
    here = (DOCS / page.file.src_uri).parent
    markdown = FENCE.sub(shown_rust, markdown)
    pieces = CODE.split(markdown)
    # Every second piece is code.
    for number in range(0, len(pieces), 2):
        pieces[number] = LINK.sub(
            lambda found: found[1] + target(found[2], folder, here, page, config) + found[3], pieces[number]
        )
    return "".join(pieces)


def shown_rust(found: re.Match[str]) -> str:
    """A block of Rust without the lines that are for the compiler only."""
    lines = [line for line in found[1].splitlines() if not re.match(r"\s*#($| )", line)]
    return "\n".join(["```rust", *lines, "```"])


def target(link: str, folder: Path, here: Path, page: Page, config: MkDocsConfig) -> str:
    """What a link of the text is on the site: a page, or a file of the repository."""
    if re.match(r"[a-z]+:|#|<", link):
        return link
    path, mark, anchor = link.partition("#")
    file = Path(os.path.normpath(folder / path))
    if not file.exists():
        log.warning(f"{page.file.src_uri}: the link {link} leads nowhere")
        return link
    if file.parent == ROOT and file.name in PAGES:
        file = DOCS / PAGES[file.name]
    if file.is_relative_to(DOCS) and file.suffix:
        return os.path.relpath(file, here) + mark + anchor
    kind = "tree" if file.is_dir() else "blob"
    return f"{config.repo_url.rstrip('/')}/{kind}/main/{file.relative_to(ROOT)}{mark}{anchor}"
