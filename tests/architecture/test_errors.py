"""The error tree is the one drawn, every error is raised somewhere, and every error raised is tested."""

from __future__ import annotations

import ast
import builtins
import pickle
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unet_deploy import errors
from unet_deploy.errors import UnetDeployError

GROUPS = {"UnetDeployError", "InputDataError", "ModelError", "RequirementError"}
"""Never raised themselves: they are there to be caught."""

PROTOCOL = {"NotImplementedError", "AttributeError", "AssertionError", "SystemExit", "KeyboardInterrupt"}
"""What Python itself expects of some methods and programs."""

TRANSLATED = {"unet_deploy._json_reader"}
"""Modules that raise a builtin for a parser to turn into one of ours."""

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, UnetDeployError)
}

_DRAWN = re.compile(
    r"^ {4}(?P<lines>[│├└─ ]*)(?P<name>[A-Z]\w+)"
    r"(?: +(?P<code>[a-z]+(?:-[a-z]+)*)(?=\s|$)(?<!exit))?(?: +\((?P<builtin>\w+)\))?(?: +exit (?P<exit>\d+))?$"
)


@dataclass(frozen=True)
class Drawn:
    """One line of the tree in the module docstring."""

    name: str
    parent: str | None
    code: str | None
    builtin: str | None
    exit_code: int | None


def drawn_tree() -> dict[str, Drawn]:
    path: list[tuple[str, int | None]] = []  # the branch being drawn: name and exit code
    found: dict[str, Drawn] = {}
    for line in (errors.__doc__ or "").splitlines():
        if (match := _DRAWN.match(line)) is None:
            continue
        del path[len(match["lines"]) // 4 :]
        parent, inherited = path[-1] if path else (None, None)
        exit_code = int(match["exit"]) if match["exit"] else inherited
        path.append((match["name"], exit_code))
        found[match["name"]] = Drawn(match["name"], parent, match["code"], match["builtin"], exit_code)
    return found


TREE = drawn_tree()


def calls_of_errors(tree: ast.AST) -> list[tuple[int, str]]:
    """Return line and class of every ``CardError(...)``, ``errors.CardError(...)``, ``CardError.of_x(...)``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func).split(".")
            found += [(node.lineno, word) for word in words[-2:] if word in CLASSES]
    return found


@pytest.fixture(scope="module")
def made(modules: list[Any]) -> dict[str, list[str]]:
    """Return where each class of error is made, outside errors.py itself."""
    sites: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        if module.name != "unet_deploy.errors":
            for line, name in calls_of_errors(module.tree):
                sites[name].append(f"{module.name}:{line}")
    return sites


def test_the_drawing_is_complete() -> None:
    assert set(TREE) == set(CLASSES)
    assert len(TREE) >= 30


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_is_as_drawn(name: str) -> None:
    cls, drawn = CLASSES[name], TREE[name]
    parent, *others = cls.__bases__
    if drawn.parent is None:
        assert cls is UnetDeployError
    else:
        assert parent is CLASSES[drawn.parent]
        assert others == ([] if drawn.builtin is None else [getattr(builtins, drawn.builtin)])
        assert cls.exit_code == drawn.exit_code
    assert cls.code == drawn.code or (drawn.code is None and any(other.parent == name for other in TREE.values()))
    assert cls.__doc__


def test_codes_are_kebab_case_and_unique() -> None:
    codes = [cls.code for cls in CLASSES.values()]
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []
    assert len(codes) == len(set(codes))
    assert [name for name, cls in CLASSES.items() if "code" not in vars(cls)] == []


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_survives_pickling(name: str) -> None:
    error = CLASSES[name]("came 3, expected 4", "in model.onnx", "on axis x", fix="--tile 4")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CLASSES[name]
    assert (again.headline, again.details, again.fix) == (error.headline, error.details, error.fix)
    assert str(again) == "came 3, expected 4\n  in model.onnx\n  on axis x\n  fix: --tile 4"


@pytest.mark.parametrize("name", sorted(set(CLASSES) - GROUPS))
def test_an_error_is_raised_somewhere(name: str, made: dict[str, list[str]]) -> None:
    assert made[name]


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_group_is_only_caught(name: str, made: dict[str, list[str]]) -> None:
    assert made[name] == []


@pytest.mark.parametrize("name", sorted(set(CLASSES) - GROUPS))
def test_an_error_that_is_raised_is_tested(name: str, made: dict[str, list[str]], root: Path) -> None:
    """The cheap half of "every raise has a test that reads its text": a test knows the class, or the code it prints."""
    sites = made[name]
    code = re.escape(CLASSES[name].code)
    known = re.compile(rf"\b{name}\b|error\[{code}\]|@bad\(\s*\"{code}\"")  # the last as in tests/cli/test_bad_input.py
    here = Path(__file__)
    readers = [
        path
        for path in (root / "tests").rglob("test_*.py")
        # These two know every class by going through all of them.
        if path != here and path != root / "tests" / "unit" / "test_errors.py" and known.search(path.read_text("utf-8"))
    ]
    assert not sites or readers, f"{name} is raised at {', '.join(sites)}, and no test names it"


def bare_builtins(tree: ast.AST) -> list[tuple[int, str]]:
    """Return line and class of every builtin exception raised, unless the very ``try`` it stands in catches it."""
    caught: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            names = {
                name for handler in node.handlers for name in re.findall(r"\w+", ast.unparse(handler.type or node))
            }
            inside = (raised for child in node.body for raised in ast.walk(child) if isinstance(raised, ast.Raise))
            caught |= {raised for raised in inside if raised.exc and ast.unparse(raised.exc).split("(")[0] in names}
    return [
        (node.lineno, name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc and node not in caught
        if isinstance(getattr(builtins, name := ast.unparse(node.exc).split("(")[0], None), type)
    ]


def test_what_is_raised_is_ours(module: Any) -> None:
    """A bare builtin tells the user nothing."""
    foreign = [f"line {line} raises {name}" for line, name in bare_builtins(module.tree) if name not in PROTOCOL]
    assert module.name in TRANSLATED or foreign == []


def test_a_bare_builtin_is_found() -> None:
    assert bare_builtins(ast.parse("def f():\n    raise ValueError('no')")) == [(2, "ValueError")]
    assert bare_builtins(ast.parse("try:\n    raise KeyError\nexcept (KeyError, OSError):\n    pass")) == []
    assert bare_builtins(ast.parse("try:\n    raise KeyError\nexcept OSError:\n    pass")) == [(2, "KeyError")]
    assert bare_builtins(ast.parse("raise CardError('no', fix='yes')")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise CardError('no', fix='yes')", [(1, "CardError")]),
        ("raise errors.CardError('no', fix='yes') from error", [(1, "CardError")]),
        ("raise MissingDependencyError.of_extra('torch', extra='train')", [(1, "MissingDependencyError")]),
        ("problems = [CardError('no', fix='yes')]", [(1, "CardError")]),
        ("raise ValueError('no')", []),
        ("isinstance(error, CardError)", []),
    ],
)
def test_the_finder_finds(text: str, expected: list[tuple[int, str]]) -> None:
    assert calls_of_errors(ast.parse(text)) == expected
