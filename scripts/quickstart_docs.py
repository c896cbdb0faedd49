"""Real English text that is on any machine with the project's Python environment: documentation strings and help topics.

Source files are parsed, never imported. The order and the content depend on the installed versions alone.
"""

import ast
import inspect
import multiprocessing
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("numpy", "torch", "networkx")
LONGEST_SIGNATURE = 160  # characters


@dataclass(frozen=True)
class Doc:
    """One documented thing, or one help topic (`signature` is empty)."""

    module: str  # dotted name of the module it stands in
    name: str  # qualified inside the module; empty for the module itself
    kind: str  # module | class | function | method | topic
    signature: str
    paragraphs: tuple[str, ...]  # one line each


def gather() -> list[Doc]:
    """Everything documented in the standard library and in PACKAGES; texts that occur twice are kept once."""
    files = sorted(_files())
    with multiprocessing.Pool() as pool:
        parsed = pool.starmap(_parse, files, chunksize=16)
    docs, seen = [], set()
    for doc in [*_topics(), *(doc for of_file in parsed for doc in of_file)]:
        text = "\n".join(doc.paragraphs)
        if text not in seen:
            seen.add(text)
            docs.append(doc)
    return docs


def _files() -> Iterator[tuple[Path, str]]:
    """Source files with their dotted module names."""
    paths = sysconfig.get_paths()
    library, site = Path(paths["stdlib"]), Path(paths["purelib"])
    roots = [(library, library), *((site, site / package) for package in PACKAGES)]
    for base, root in roots:
        for path in root.rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            if {"site-packages", "dist-packages", "test", "tests", "testing", "lib2to3", "idlelib"}.isdisjoint(parts):
                yield path, ".".join(part for part in parts if part != "__init__")


def _parse(path: Path, module: str) -> list[Doc]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []  # templates and files for other versions of Python
    return list(_walk(tree, module, ""))


def _walk(node: ast.AST, module: str, outer: str) -> Iterator[Doc]:
    if isinstance(node, ast.Module):
        kind, name, signature = "module", "", ""
    elif isinstance(node, ast.ClassDef):
        kind, name = "class", outer + node.name
        signature = f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    else:
        kind, name = ("method" if outer else "function"), outer + node.name
        signature = f"def {node.name}({ast.unparse(node.args)})"
    paragraphs = clean(ast.get_docstring(node) or "")
    if paragraphs and len(signature) <= LONGEST_SIGNATURE:
        yield Doc(module, name, kind, signature, paragraphs)
    if kind in ("module", "class"):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
                yield from _walk(child, module, f"{name}." if name else "")


def _topics() -> Iterator[Doc]:
    """What `help("...")` of the interpreter explains."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        paragraphs = clean(inspect.cleandoc(topics[name]))
        if paragraphs:
            yield Doc("pydoc_data.topics", name, "topic", "", paragraphs)


def clean(text: str) -> tuple[str, ...]:
    """The paragraphs of a documentation string that are prose: no tables, headings, examples or mark-up, each on one line."""
    return tuple(filter(_is_prose, (_without_markup(block) for block in re.split(r"\n\s*\n", text))))


def _without_markup(block: str) -> str:
    block = re.sub(r"^\s*\.\. [\w:-]+::.*$|^\s*\.\. _.*$", "", block, flags=re.MULTILINE)  # directives and link targets
    block = re.sub(r":[a-z:]+:`~?([^`]*)`", r"\1", block)  # roles: :func:`abs`
    block = re.sub(r"`+([^`]*?)(?: ?<[^<>`]*>)?`+_{0,2}", r"\1", block)  # literals and links
    return " ".join(block.replace("**", "").split())


def _is_prose(line: str) -> bool:
    if len(line) < 40 or not line.isascii() or ">>>" in line or "----" in line or "====" in line:
        return False
    letters = sum(c.isalpha() or c == " " for c in line)
    return line[0].isalpha() and letters > 0.85 * len(line) and line.rstrip("\"')").endswith((".", ":"))
