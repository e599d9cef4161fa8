"""What a user can import: nothing is missing, nothing leaks, nothing heavy comes along."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from patience import PATIENCE

PUBLIC_MODULES = [
    "trimaran",
    "trimaran.langfuse",
    "trimaran.otlp",
    "trimaran.receiver",
    "trimaran.structlog",
    "trimaran.testing",
]
NOT_IMPORTED = [
    "click",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "hypercorn",
    "jinja2",
    "rich",
    "starlette",
    "structlog",
]
TYPED_USE = Path(__file__).parent / "typing" / "api.py"
REFERENCE = Path(__file__).parent.parent / "docs" / "api.md"


def names_that_look_public(module_name: str) -> Iterator[str]:
    """Names without an underscore that a module makes.

    In ``trimaran`` itself, which makes none, those that it gathers.
    """
    module = import_module(module_name)
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.ClassDef(name=name):
                names = [name]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case ast.ImportFrom(names=aliases) if module_name == "trimaran":
                names = [alias.asname or alias.name for alias in aliases]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def names_in_typed_use() -> Iterator[str]:
    """Every ``trimaran.x.y`` that stands in the file of public API use."""
    for node in ast.walk(ast.parse(TYPED_USE.read_text())):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted.startswith("trimaran."):
                yield dotted


def names_in_reference() -> Iterator[str]:
    """Every name that the reference describes."""
    module = ""
    for line in REFERENCE.read_text().splitlines():
        match re.split(r":: |\(", line):
            case [".. currentmodule", module]:
                pass
            case [directive, name, *_] if directive.startswith(".. auto"):
                yield f"{module}.{name}"
            case _:
                pass


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_all_is_what_a_user_can_import(module_name: str) -> None:
    """``__all__`` has each public name of the module, once, and nothing that is not there."""
    module = import_module(module_name)
    names = module.__all__

    assert sorted(names) == sorted(set(names))
    assert set(names) - set(dir(module)) == set()
    assert set(names_that_look_public(module_name)) - set(names) == set()


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_every_public_name_is_documented(module_name: str) -> None:
    """Each class and function says in a docstring what it is for."""
    module = import_module(module_name)
    things = {name: getattr(module, name) for name in module.__all__}

    undocumented = [
        name
        for name, thing in things.items()
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and not inspect.getdoc(thing)
    ]

    assert undocumented == []


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_every_public_name_is_type_checked(module_name: str) -> None:
    """Each name is used in ``tests/typing/api.py``, so that its type is what users count on."""
    expected = {f"{module_name}.{name}" for name in import_module(module_name).__all__}

    assert expected - set(names_in_typed_use()) == set()


def test_the_reference_is_complete() -> None:
    """``docs/api.md`` describes each public name once, and no other."""
    public = [
        f"{module_name}.{name}"
        for module_name in PUBLIC_MODULES
        for name in import_module(module_name).__all__
        if name != "__version__"
    ]

    assert sorted(names_in_reference()) == sorted(public)


def test_importing_is_light() -> None:
    """``import trimaran`` brings no HTTP library, no logging library and no extra."""
    program = f"import sys, trimaran; print(sorted(sys.modules.keys() & {set(NOT_IMPORTED)}))"

    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("module_name", PUBLIC_MODULES)
def test_modules_can_be_imported_first(module_name: str) -> None:
    """No public module needs another one to be imported before it."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {module_name}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert (result.returncode, result.stderr) == (0, "")
