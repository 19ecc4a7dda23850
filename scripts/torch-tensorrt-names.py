"""Lists the public names of Torch-TensorRT, with the arguments of functions: what
`regraft.compat.torch_tensorrt` is to have. Its code is read, not run.

    pip download --no-deps torch-tensorrt && unzip -d unpacked torch_tensorrt-*.whl
    python scripts/torch-tensorrt-names.py unpacked/torch_tensorrt > tests/torch_tensorrt_names.txt

Left out are the modules that are about TensorRT itself, but for the names that the package exports from them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(sys.argv[1])
MODULES = (
    "",
    "dynamo",
    "dynamo._defaults",
    "dynamo._engine_cache",
    "dynamo._settings",
    "dynamo.backend",
    "dynamo.backend.backends",
    "dynamo.runtime",
    "dynamo.runtime._MutableTorchTensorRTModule",
    "dynamo.utils",
    "logging",
    "runtime",
)
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Names = dict[str, "ast.AST | None"]
_KNOWN: dict[str, Names] = {}


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from (*node.body, *node.orelse)
        else:
            yield node


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    for found in (path / "__init__.py", path.with_suffix(".py")):
        if found.is_file():
            return found
    return None


def imported(node: ast.ImportFrom, module: str, is_package: bool) -> str | None:
    """The module that names come from, within the package."""
    if node.level:
        parts = module.split(".") if module else []
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])
    name = node.module or ""
    is_own = name == "torch_tensorrt" or name.startswith("torch_tensorrt.")
    return name.removeprefix("torch_tensorrt").lstrip(".") if is_own else None


def names_of(module: str) -> Names:
    if module in _KNOWN:
        return _KNOWN[module]
    names = _KNOWN[module] = {}
    file = file_of(module)
    if file is None:
        return names
    for node in statements(ast.parse(file.read_text())):
        if isinstance(node, (*Function, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update((target.id, None) for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            source = imported(node, module, True)
            if source is not None:
                found = names_of(source)
                for alias in node.names:
                    if alias.name == "*":
                        names.update((k, v) for k, v in found.items() if not k.startswith("_"))
                    else:
                        names[alias.asname or alias.name] = found.get(alias.name)
    return names


def arguments(node: ast.AST) -> str:
    assert isinstance(node, Function)
    given = node.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return " ".join(name for name in names if name not in ("self", "cls"))


def members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for part in node.body:
        if isinstance(part, Function) and (part.name == "__init__" or not part.name.startswith("_")):
            yield part.name, arguments(part)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id, ""
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            yield part.targets[0].id, ""


def main() -> None:
    lines = set()
    for module in MODULES:
        front = f"{module}." if module else ""
        for name, node in names_of(module).items():
            if name.startswith("_") or name in ("logger", "T"):
                continue
            lines.add(f"{front}{name}: {arguments(node) if isinstance(node, Function) else ''}".rstrip())
            if isinstance(node, ast.ClassDef) and not module:
                lines.update(
                    f"{front}{name}.{member}: {args}".rstrip()
                    for member, args in members(node)
                    if not member.startswith("_") or member == "__init__"
                )
            elif isinstance(node, ast.ClassDef) and name in ("CompilationSettings", "BaseEngineCache"):
                lines.update(
                    f"{front}{name}.{member}: {args}".rstrip()
                    for member, args in members(node)
                    if not member.startswith("_")
                )
    print("\n".join(sorted(lines)))


main()
