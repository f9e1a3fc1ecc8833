"""Makes the reference page of the tables and views from the schema's own comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fleet.store.database import migrations

START = re.compile(r"CREATE (TABLE|VIEW) (\w+)")
COLUMN = re.compile(r"^\s+(?P<text>.*?),?\s+-- (?P<sentence>.+)$")


@dataclass
class Relation:
    """A table or view.

    Attributes:
        sentence: what it holds; only views have one.
        example: a query to begin with; only views have one.
        columns: name and sentence, in order.
    """

    name: str
    view: bool
    sentence: str = ""
    example: str = ""
    columns: list[tuple[str, str]] = field(default_factory=list)


def relations() -> list[Relation]:
    """Return all tables and views, as the migrations describe them."""
    found: list[Relation] = []
    for _, sql in migrations():
        sentence = example = ""
        current: Relation | None = None
        for line in sql.splitlines():
            if start := START.match(line):
                current = Relation(start[2], start[1] == "VIEW", sentence, example)
                found.append(current)
                sentence = example = ""
            elif line.startswith("-- Example: "):
                example = line.removeprefix("-- Example: ")
            elif line.startswith("-- "):
                sentence = line.removeprefix("-- ")
            elif current is not None and (column := COLUMN.match(line)):
                current.columns.append((_name(column["text"], current.view), column["sentence"]))
    return found


def _name(text: str, view: bool) -> str:
    if not view:
        return text.split()[0]
    return re.split(r"\bAS\s+", text)[-1].split(".")[-1].strip()


def reference() -> str:
    """Return the page, in Markdown."""
    parts = [
        "# Tables of the store",
        "",
        'Ask with `fleet sql "select …"`, `Fleet.sql`, `POST /api/sql` or the control room\'s SQL page: one SELECT at '
        "a time, on a snapshot, bounded in rows, seconds and memory. Times are UTC, money is in US dollars. The views "
        "are for people; the tables under them may change with a migration.",
        "",
    ]
    for relation in relations():
        if not relation.view:
            continue
        parts += [f"## {relation.name}", "", relation.sentence, "", "```sql", relation.example, "```", ""]
        parts += ["| column | meaning |", "|---|---|"]
        parts += [f"| `{name}` | {sentence} |" for name, sentence in relation.columns]
        parts.append("")
    parts += ["## Tables under the views", ""]
    for relation in relations():
        if not relation.view:
            columns = ", ".join(f"`{name}`" for name, _ in relation.columns)
            parts += [f"- `{relation.name}`: {columns}"]
    return "\n".join(parts).rstrip() + "\n"


def examples() -> dict[str, str]:
    """Return the example query of each view."""
    return {relation.name: relation.example for relation in relations() if relation.view}


if __name__ == "__main__":
    print(reference(), end="")
