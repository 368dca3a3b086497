"""The catalogue reads from the source what Python would say after importing it."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from typing import Any

import pytest

import efface.erase
from efface import catalog
from efface.catalog import Field, Info
from efface.errors import BadInput, UnknownName

METHODS = [(family, name) for family in catalog.FAMILIES for name in catalog.names(family)]
INHERITED = {"guide": {"concept"}}
"""Fields that a family's methods get otherwise than as settings."""


def info(*fields: Field) -> Info:
    return Info("erase", "uce", "UCE", "", "", {}, fields, ())


def settings(annotation: str, text: str) -> Any:
    return catalog.settings(info(Field("x", annotation, None, "")), {"x": text})["x"]


def test_methods_are_found_by_file_and_shared_files_are_not() -> None:
    assert {"uce", "rece"} <= set(catalog.names("erase"))
    assert list(catalog.names("detect")) == sorted(catalog.names("detect"))
    assert not [name for _, name in METHODS if name.startswith("_")]


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_what_the_source_says_is_what_the_class_has(family: str, name: str) -> None:
    said, cls = catalog.info(family, name), catalog.load(family, name)
    module = sys.modules[cls.__module__]
    assert said.cls == cls.__name__ and said.doc == inspect.getdoc(cls)
    assert said.summary and said.summary == said.doc.splitlines()[0]
    assert {fact: getattr(cls, fact) for fact in said.facts} == said.facts
    real = {field.name: field for field in dataclasses.fields(cls)}
    assert {field.name for field in said.fields} == real.keys() - INHERITED.get(family, set())
    for field in said.fields:
        if field.default is None:
            assert real[field.name].default is dataclasses.MISSING
        else:
            assert eval(field.default, vars(module)) == real[field.name].default
    assert said.presets == tuple(getattr(module, "PRESETS", {}))


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_every_setting_of_a_method_has_its_help(family: str, name: str) -> None:
    assert not [field.name for field in catalog.info(family, name).fields if not field.help]


def test_a_familys_facts_are_read() -> None:
    assert catalog.info("erase", "uce").facts["paper"] == "arXiv:2308.14761"
    assert catalog.info("detect", "blocklist").facts["reads"] == "text"
    assert catalog.info("measure", "rate").facts["better"] == "lower"


def test_info_imports_neither_the_method_nor_torch() -> None:
    code = (
        "import sys; from efface import catalog\n"
        "for f in catalog.FAMILIES:\n    for n in catalog.names(f): catalog.info(f, n)\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith(('efface.erase', 'efface.detect'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(out.stdout) == []


def test_classes_come_from_their_family_by_name() -> None:
    assert efface.erase.RECE is catalog.load("erase", "rece")
    with pytest.raises(AttributeError, match=r"module 'efface\.erase' has no attribute 'Rece'"):
        efface.erase.Rece  # noqa: B018


def test_unknown_families_methods_and_fields_name_the_near_ones() -> None:
    with pytest.raises(UnknownName, match=r'unknown family "erasers" .*erase'):
        catalog.names("erasers")
    with pytest.raises(UnknownName, match=r'unknown erase method "rce" .*rece'):
        catalog.info("erase", "rce")
    with pytest.raises(UnknownName, match=r'unknown field of uce "rigde" .*ridge'):
        catalog.settings(catalog.info("erase", "uce"), {"rigde": "1"})


@pytest.mark.parametrize(("annotation", "text", "value"), [
    ("int", "3", 3), ("float", "0.5", 0.5), ("float", "1e-3", 1e-3), ("str", "a b", "a b"),
    ("bool", "true", True), ("bool", "No", False), ("bool", "1", True),
    ("float | None", "none", None), ("float | None", "2", 2.0), ("None | int", "2", 2), ("None | int", "None", None),
    ("Literal['a', 'b']", "b", "b"), ("Literal['a']", "a", "a"),
    ("tuple[str, ...]", "a dog; a cat ;", ("a dog", "a cat")), ("tuple[float, ...]", "1;2", (1.0, 2.0)),
    ("tuple[str, ...] | None", "a;b", ("a", "b")), ("str | Mapping[str, str]", "dog", "dog"),
])  # fmt: skip
def test_a_text_becomes_what_the_annotation_says(annotation: str, text: str, value: Any) -> None:
    converted = settings(annotation, text)
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(("annotation", "text"), [
    ("int", "1.5"), ("int", "many"), ("float", "a lot"), ("float", "nan"), ("float", "inf"), ("bool", "maybe"),
    ("Literal['a', 'b']", "c"), ("tuple[float, ...]", "1;x"), ("float | None", "nothing"),
])  # fmt: skip
def test_a_text_that_does_not_fit_names_method_field_and_what_was_wanted(annotation: str, text: str) -> None:
    with pytest.raises(BadInput, match=rf'uce: x must be .*, got "{text}"'):
        settings(annotation, text)


def test_a_choice_is_worded_as_one() -> None:
    with pytest.raises(BadInput, match=r"x must be one of \['a', 'b'\]"):
        settings("Literal['a', 'b']", "c")
