"""The docstrings below the fields of sections, read from the source when a schema is shown. Every process.

pydantic can collect them where a class is made, which parses the source of each class at every start of a command.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping


def docstrings(section: type) -> Mapping[str, str]:
    """Return the docstring of each field that has one, those of base classes included; empty without the source."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        texts |= _of_module(base.__module__).get(base.__qualname__, {})
    return texts


@functools.cache
def _of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError):  # no such module, or none that was read from a file
        return {}
    return dict(_classes(tree, ""))


def _classes(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the qualified name of every class, with the docstrings below its annotated assignments."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, dict(_fields(node))
            yield from _classes(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield from _classes(node, f"{prefix}{node.name}.<locals>.")


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, after in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            yield statement.target.id, inspect.cleandoc(after.value.value)
