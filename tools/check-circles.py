#!/usr/bin/env python3
"""Finds import cycles between the source files of each crate: none is allowed.

A file imports another one if it names an item that is defined there, by `use` or by a path that begins with `crate`,
`super` or `self`; re-exports are followed to the file that defines the item. Test modules do not count.

Two things are not cycles: a crate root that re-exports its modules, and a `mod.rs` (or `x.rs` beside `x/`) together with
the files of its folder, as long as nothing outside of that folder takes part.

    python3 tools/check-circles.py [--edges] [CRATE FOLDER ...]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Circles that are allowed, each as a set of files, with the reason beside it. Keep it empty.
ALLOWED: list[set[str]] = []

ITEM = r"\b(?:fn|struct|enum|union|trait|type|const|static|mod|macro_rules!)\s+(?:mut\s+)?{}\b"


def code_of(text: str) -> str:
    """`text` without comments, string contents and test modules."""
    pattern = re.compile(
        r"""//[^\n]*|/\*.*?\*/|b?r(?P<hash>\#*)".*?"(?P=hash)|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""", re.S
    )
    text = pattern.sub(lambda found: '""' if '"' in found[0] else " ", text)
    test = re.compile(r"#\[cfg\((?:test|all\(test\b[^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?mod\s+\w+\s*([{;])")
    while found := test.search(text):
        end = found.end()
        depth = 1 if found[1] == "{" else 0
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[: found.start()] + text[end:]
    return text


def expand(tree: str) -> list[list[str]]:
    """The paths of a `use` tree: `a::{b, c as d}` is [[a, b], [a, c, "as d"]]."""
    tree = tree.strip()
    opened = tree.find("{")
    if opened < 0:
        path, _, name = tree.partition(" as ")
        parts = [part.strip() for part in path.split("::") if part.strip()]
        return [parts + [f"as {name.strip()}"] if name else parts]
    head = [part.strip() for part in tree[:opened].split("::") if part.strip()]
    paths, depth, start = [], 0, opened + 1
    for at in range(opened, len(tree)):
        char = tree[at]
        depth += {"{": 1, "}": -1}.get(char, 0)
        if (char == "," and depth == 1) or (char == "}" and depth == 0):
            if part := tree[start:at].strip():
                paths += [head + path for path in expand(part)]
            start = at + 1
    return paths


class Crate:
    """The modules of a crate, one a file, and who imports whom."""

    def __init__(self, folder: Path):
        self.files: dict[tuple[str, ...], Path] = {}
        self.code: dict[tuple[str, ...], str] = {}
        self.uses: dict[tuple[str, ...], list[tuple[bool, list[str]]]] = {}
        self.load((), folder / "src/lib.rs", folder / "src")
        for module, code in self.code.items():
            statements = re.findall(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", code)
            self.uses[module] = [(bool(public), path) for public, tree in statements for path in expand(tree)]
        self.edges = {module: self.imports(module) for module in self.files}

    def load(self, module: tuple[str, ...], file: Path, folder: Path) -> None:
        self.files[module] = file
        self.code[module] = code = code_of(file.read_text())
        for name in re.findall(r"\bmod\s+(\w+)\s*;", code):
            for child in (folder / f"{name}.rs", folder / name / "mod.rs"):
                if child.exists():
                    self.load((*module, name), child, folder / name)

    def absolute(self, module: tuple[str, ...], path: list[str]) -> list[str] | None:
        """The path from the crate's root; `None` when it leads to another crate."""
        base, rest = list(module), list(path)
        if rest[:1] == ["crate"]:
            return rest[1:]
        if rest[:1] == ["self"]:
            return base + rest[1:]
        if rest[:1] == ["super"]:
            while rest[:1] == ["super"]:
                base, rest = base[:-1], rest[1:]
            return base + rest
        return base + rest if rest and (*module, rest[0]) in self.files else None

    def home(self, path: list[str], seen: frozenset = frozenset()) -> tuple[str, ...] | None:
        """The module that defines the item at this path from the root."""
        module: tuple[str, ...] = ()
        for at, name in enumerate(path):
            if name == "*" or name.startswith("as "):
                break
            if (*module, name) in self.files:
                module = (*module, name)
                continue
            if re.search(ITEM.format(re.escape(name)), self.code[module]):
                break
            for _, used in self.uses[module]:
                renamed = used[-1].startswith("as ")
                known, target = (used[-1][3:], used[:-1]) if renamed else (used[-1], used)
                target_path = self.absolute(module, target)
                if known == "self":
                    known, target_path = used[-2], target_path[:-1] if target_path else None
                key = (module, name, tuple(target))
                if target_path is None or key in seen:
                    if known == name:
                        return None
                    continue
                if known == name:
                    return self.home(target_path + path[at + 1 :], seen | {key})
                if known == "*":
                    glob = self.home(target_path[:-1], seen | {key})
                    if glob is not None and re.search(ITEM.format(re.escape(name)), self.code[glob]):
                        return glob
            break
        return module

    def imports(self, module: tuple[str, ...]) -> set[tuple[str, ...]]:
        code = self.code[module]
        paths = [path for _, path in self.uses[module]]
        inline = re.sub(r"\buse\s+[^;]+;", "", code)
        paths += [found.split("::") for found in re.findall(r"\b(?:crate|super|self)(?:::\w+)+", inline)]
        paths += [["self", name] for name in re.findall(r"\bmod\s+(\w+)\s*;", code)]
        edges = set()
        for path in paths:
            absolute = self.absolute(module, path)
            home = None if absolute is None else self.home(absolute)
            # The root joins the modules; what it re-exports was followed.
            if home and home != module:
                edges.add(home)
        return edges


def components(edges: dict) -> list[list]:
    """The strongly connected components with more than one member (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(stack[at:])
            del stack[at:]

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return [sorted(component) for component in found if len(component) > 1]


def circles(crate: Crate) -> list[list]:
    edges = {module: set(imported) for module, imported in crate.edges.items() if module}

    def related(a, b):
        return a[: len(b)] == b or b[: len(a)] == a

    siblings = {a: {b for b in imported if not related(a, b)} for a, imported in edges.items()}
    found = components(siblings)
    for component in components(edges):
        top = min(component, key=len)
        within = all(module[: len(top)] == top for module in component)
        if not within and not any(set(component) <= set(known) for known in found):
            found.append(component)
    return found


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--edges"]
    folders = [Path(argument).resolve() for argument in arguments]
    if not folders:
        folders = [ROOT] + sorted(file.parent for file in ROOT.glob("qwen-*/Cargo.toml"))
    failed = False
    for folder in folders:
        crate = Crate(folder)
        name = lambda module: str(crate.files[module].relative_to(folder))
        if "--edges" in sys.argv:
            for module, imported in sorted(crate.edges.items()):
                for other in sorted(imported):
                    print(f"{folder.name}: {name(module)} -> {name(other)}")
        for circle in circles(crate):
            files = {name(module) for module in circle}
            if any(files <= allowed for allowed in ALLOWED):
                continue
            failed = True
            print(f"error: {folder.name}: these {len(circle)} files import each other in a circle:", file=sys.stderr)
            for module in circle:
                others = sorted(name(other) for other in crate.edges[module] if other in circle)
                print(f"    {name(module)} imports {', '.join(others)}", file=sys.stderr)
    if not failed:
        print(f"no import circle in {len(folders)} crates")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
