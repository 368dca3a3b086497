"""What keeps the code small, findable and safe: sizes, names, light imports, a test and a line for every method.

Layers are kept by import-linter (`make check`), which reads its contract from pyproject.toml.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from efface import catalog

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "efface"
TESTS = ROOT / "tests"
FILES = sorted(path for path in SRC.rglob("*.py"))
METHODS = [(family, name) for family in catalog.FAMILIES for name in catalog.names(family)]

FORBIDDEN = {"utils", "util", "common", "helpers", "helper", "base", "registry", "manager", "factory", "misc", "config"}
"""Names that say nothing about what is inside."""
TESTED_BY = {
    "__main__.py": "cli/test_commands.py",
    **{
        f"cli/{path.name}": "cli/test_commands.py"
        for path in SRC.glob("cli/*.py")
        if not (TESTS / "cli" / f"test_{path.name}").is_file()
    },
    **{f"picto/{name}.py": "picto/test_world.py" for name in ("objects", "prompts")},
}
"""Files without a test file of their own: a command is tested through the command line, picto's data through world."""
LIGHT = (
    "efface", "efface.core", "efface.catalog", "efface.progress", "efface.errors", "efface.concepts", "efface.card",
    "efface.cli", "efface.picto.world",
)  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "matplotlib", "jinja2")


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_name_says_what_is_inside(path: Path) -> None:
    assert not {part.removesuffix(".py").strip("_") for part in path.relative_to(SRC).parts} & FORBIDDEN


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_a_method_file_holds_one_public_class_named_like_the_file(family: str, name: str) -> None:
    body = tree(SRC / family / f"{name}.py").body
    public = [node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    assert [cls.lower() for cls in public] == [name.replace("_", "")]


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_a_method_has_its_test_and_its_line_in_the_docs(family: str, name: str) -> None:
    assert TESTS.joinpath(family, f"test_{name}.py").is_file()
    page = ROOT.joinpath("docs", "methods.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{catalog.info(family, name).cls}\b", page)


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_method_files_import_no_other_family_and_no_other_method(family: str, name: str) -> None:
    imported = [
        module
        for node in ast.walk(tree(SRC / family / f"{name}.py"))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        for module in [alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"]
    ]
    assert not [module for module in imported if re.match(rf"efface\.({'|'.join(catalog.FAMILIES)})\.(?!_)", module)]


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=name_of)
def test_a_source_file_has_a_test_file_at_the_same_place(path: Path) -> None:
    within = path.relative_to(SRC)
    mirrored = TESTS / within.parent / f"test_{within.name}"
    documented = TESTED_BY.get(within.as_posix())
    assert mirrored.is_file() or (documented and (TESTS / documented).is_file())
    assert not (mirrored.is_file() and documented)  # an exception that is none any more


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_everything_public_says_what_it_gives(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module)
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in module.body if isinstance(node, kinds) and not node.name.startswith("_")]
    public += [
        member
        for node in public
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, kinds) and not member.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_pickle_is_ever_read_or_written(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\btorch\.(load|save)\b|\b(import|from) (pickle|dill|joblib|cloudpickle|shelve)\b", text)
    assert "use_safetensors=False" not in text and "allow_pickle=True" not in text


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    relative = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(out.stdout) == []


def test_there_is_a_changelog_that_names_every_method() -> None:
    text = ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8").lower().replace("_", " ")
    words = " ".join(re.findall(r"\w+", text))
    assert not [name for _, name in METHODS if name.replace("_", " ") not in words]


RESULTS = sorted(ROOT.glob("benchmarks/**/results/*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_benchmarks_result_says_how_it_came_about(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8")).keys() >= {"command", "commit", "machine"}


def test_no_path_of_somebodys_machine_is_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    texts = [ROOT / name for name in listed if name.endswith((".py", ".md", ".toml", ".json", ".txt", ".jinja"))]
    own = re.compile(r"(?<![\w.])/(home|Users|root|work)/\w")
    assert not [str(path.relative_to(ROOT)) for path in texts if path.is_file() and own.search(path.read_text("utf-8"))]
