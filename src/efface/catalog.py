"""Find methods by file name and read their settings without importing them.

The rule: `erase/forget_me_not.py` holds one public class whose lower-case name is `forgetmenot`. A new file is found
at once; there is nothing to register.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from efface.errors import BadInput, UnknownName

FAMILIES = ("erase", "guide", "detect", "attack", "measure")


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of a method, as its source says it."""

    name: str
    annotation: str
    default: str | None
    help: str


@dataclass(frozen=True, slots=True)
class Info:
    """What the source of a method says about it."""

    family: str
    name: str
    cls: str
    summary: str
    doc: str
    facts: Mapping[str, Any]
    """Class variables written as constants: paper, reads, needs, better."""
    fields: tuple[Field, ...]
    presets: tuple[str, ...]


def names(family: str) -> tuple[str, ...]:
    """The methods of a family, in alphabetical order."""
    if family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    found = Path(__file__).parent.joinpath(family).glob("[!_]*.py")
    return tuple(sorted(path.stem for path in found))


@cache
def info(family: str, name: str) -> Info:
    """Parse a method's file: its class, fields with their help, presets. Costs a millisecond, imports nothing."""
    if family == "suite":
        return _suite(name)
    if name not in names(family):
        raise UnknownName(f"{family} method", name, names(family))
    tree = ast.parse(Path(__file__).parent.joinpath(family, f"{name}.py").read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name.lower() == name.replace("_", ""))
    doc = ast.get_docstring(node) or ""
    facts, fields = _read(node)
    if family == "erase":
        fields.append(Field("seed", "int", "0", "Seed of everything random in the method."))
    if family == "guide" and "strength" not in (field.name for field in fields):
        fields.append(Field("strength", "float", "1.0", "From 0, the stock picture, to 1, all that the method does."))
    return Info(family, name, node.name, doc.split("\n", 1)[0], doc, facts, tuple(fields), _presets(tree))


def load(family: str, name: str) -> type:
    """The class of a method; this imports it, and torch with it."""
    cls = info(family, name).cls
    return getattr(importlib.import_module(f"efface.{family}.{name}"), cls)


def presets(family: str, name: str) -> Mapping[str, Any]:
    """The presets of a method, by name; empty where its file has none. This imports it, and torch with it."""
    return getattr(importlib.import_module(f"efface.{family}.{name}"), "PRESETS", {})


def suites() -> tuple[str, ...]:
    """The named benchmarks, in the order of their file."""
    return tuple(node.name.replace("_", "-") for node in _suites())


def detector(text: str) -> Any:
    """DETECTOR[:FIELD=V,...] as a detector; this imports it, and torch with it."""
    name, _, fields = text.partition(":")
    return made("detect", name, assigned(text, fields))


def made(family: str, name: str, given: Mapping[str, str]) -> Any:
    """A method with the values that texts give its fields, as `settings` reads them."""
    return load(family, name)(**settings(info(family, name), given))


def assigned(whole: str, text: str) -> dict[str, str]:
    """FIELD=V,... as texts by field; `whole` is named where something is wrong."""
    fields: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, given, value = part.partition("=")
        if not given:
            raise BadInput(f'{whole}: expected FIELD=VALUE, got "{part}"')
        fields[name.strip()] = value
    return fields


def by_class(family: str, cls: str) -> type:
    """The class of a family by its own name, for `from efface.erase import RECE`."""
    for name in names(family):
        if name.replace("_", "") == cls.lower() and info(family, name).cls == cls:
            return load(family, name)
    raise AttributeError(f"module 'efface.{family}' has no attribute {cls!r}")


def settings(method: Info, given: Mapping[str, str]) -> dict[str, Any]:
    """Texts from a command line as values of the method's fields; BadInput names the field that is wrong."""
    known = {field.name: field for field in method.fields}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise UnknownName(f"field of {method.name}", name, known)
        values[name] = _value(method, known[name], text)
    return values


def _value(method: Info, field: Field, text: str) -> Any:
    kind = ast.parse(field.annotation, mode="eval").body
    try:
        return _convert(kind, text)
    except (ValueError, SyntaxError) as error:
        wanted = field.annotation.replace("Literal", "one of ")
        raise BadInput(f'{method.name}: {field.name} must be {wanted}, got "{text}"') from error


def _convert(kind: ast.expr, text: str) -> Any:
    match kind:
        case ast.BinOp(left=left, right=right):  # X | None
            options = [left, right]
            if text.lower() == "none" and any(isinstance(o, ast.Constant) and o.value is None for o in options):
                return None
            return _convert(next(o for o in options if not (isinstance(o, ast.Constant) and o.value is None)), text)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            allowed = [c.value for c in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]  # type: ignore[union-attr]
            if text not in allowed:
                raise ValueError(text)
            return text
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, *_])):
            return tuple(_convert(first, part.strip()) for part in text.split(";") if part.strip())
        case ast.Name(id="bool"):
            if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
                raise ValueError(text)
            return text.lower() in ("true", "yes", "1")
        case ast.Name(id="int"):
            return int(text)
        case ast.Name(id="float"):
            if not isfinite(value := float(text)):
                raise ValueError(text)
            return value
    return text


def _read(node: ast.ClassDef) -> tuple[dict[str, Any], list[Field]]:
    facts: dict[str, Any] = {}
    fields: list[Field] = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            facts |= {t.id: statement.value.value for t in statement.targets if isinstance(t, ast.Name)}
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, annotation = statement.target.id, ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            if isinstance(statement.value, ast.Constant):
                facts[name] = statement.value.value
            continue
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        help_text = " ".join(str(following.value.value).split()) if documented else ""  # type: ignore[union-attr]
        default = None if statement.value is None else ast.unparse(statement.value)
        fields.append(Field(name, annotation, default, help_text))
    return facts, fields


def _suites() -> list[ast.FunctionDef]:
    tree = ast.parse(Path(__file__).parent.joinpath("bench", "suites.py").read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _suite(name: str) -> Info:
    """A suite's arguments are its fields; their help is the lines `argument: ...` of its docstring."""
    node = next((node for node in _suites() if node.name == name.replace("-", "_")), None)
    if node is None:
        raise UnknownName("suite", name, suites(), "or give a TOML file that describes one")
    doc = ast.get_docstring(node) or ""
    parted = (line.partition(": ") for line in doc.splitlines())
    told = {name: text for name, colon, text in parted if colon}
    defaults = [None] * (len(node.args.args) - len(node.args.defaults)) + [ast.unparse(d) for d in node.args.defaults]
    fields = tuple(
        Field(arg.arg, ast.unparse(arg.annotation) if arg.annotation else "str", default, told.get(arg.arg, ""))
        for arg, default in zip(node.args.args, defaults, strict=True)
    )
    text = "\n".join(line for line in doc.splitlines() if line.partition(": ")[0] not in {f.name for f in fields})
    return Info("suite", name, node.name, doc.split("\n", 1)[0], text.strip(), {}, fields, ())


def _presets(tree: ast.Module) -> tuple[str, ...]:
    for statement in tree.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "PRESETS" and isinstance(value, ast.Dict):
            return tuple(str(key.value) for key in value.keys if isinstance(key, ast.Constant))
    return ()
