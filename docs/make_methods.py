"""Write the tables of docs/methods.md from the sources: `make docs`; with --check, fail where they differ."""

import sys
from pathlib import Path

from efface import catalog

PAGE = Path(__file__).with_name("methods.md")
START, END = "<!-- made by make docs: ", "<!-- end -->"


def table(family: str) -> str:
    """A line for each method of a family."""
    rows = ["| method | what it gives | settings | source |", "|---|---|---|---|"]
    for name in catalog.names(family):
        info = catalog.info(family, name)
        fields = ", ".join(f"`{field.name}`" for field in info.fields if field.name != "seed") or "none"
        rows.append(f"| `{name}` ({info.cls}) | {info.summary} | {fields} | {info.facts.get('paper', '')} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with every table made anew."""
    for family in catalog.FAMILIES:
        start = text.index(f"{START}{family} -->")
        end = text.index(END, start)
        body = table(family) if catalog.names(family) else "None yet."
        text = f"{text[:start]}{START}{family} -->\n{body}\n{text[end:]}"
    return text


def main() -> int:
    """Write the page, or say that it is out of date."""
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if "--check" in sys.argv:
        if new != old:
            sys.stderr.write("docs/methods.md is out of date: run make docs\n")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
