"""What SQL people may run: one SELECT over the fleet's own tables, without files, network or settings.

The query is parsed by DuckDB and its tree is walked, so spelling tricks do not matter. Behind this stand two more
walls: the instance has external access switched off, and the query runs in a read-only transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import duckdb

from fleet.errors import QueryRefused

QUERY_LIMIT_BYTES = 100_000

TABLE_FUNCTIONS = frozenset(
    {
        "unnest",
        "range",
        "generate_series",
        "json_each",
        "json_tree",
        "duckdb_columns",
        "duckdb_tables",
        "duckdb_views",
        "duckdb_functions",
        "duckdb_types",
        "duckdb_keywords",
        "summary",
        "histogram",
        "histogram_values",
    }
)
"""Table functions that read nothing but the query's own rows and the catalog. All others are refused."""

REFUSED_FUNCTIONS = frozenset(
    {
        # State of the process, the connection and the machine.
        "getenv",
        "current_setting",
        "getvariable",
        "setseed",
        "nextval",
        "currval",
        "write_log",
        "parse_duckdb_log_message",
        "current_query",
        "txid_current",
        "in_search_path",
        # Files.
        "read_text",
        "read_blob",
        "read_csv",
        "read_json",
        "read_parquet",
        "glob",
        # Sleeping ones hold one of the few places for queries.
        "sleep_ms",
        "pg_sleep",
        # One call makes gigabytes outside of the memory limit.
        "repeat",
        "lpad",
        "rpad",
        "range",
        "generate_series",
        "list_resize",
        "array_resize",
        "bitstring",
        # SQL in strings.
        "query",
        "query_table",
        "json_execute_serialized_sql",
        "json_serialize_sql",
        "json_deserialize_sql",
    }
)
NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
"""Query nodes that only read. DuckDB counts `WITH x AS (INSERT …) SELECT` as a SELECT statement."""
SCHEMAS = frozenset({"", "main", "information_schema"})
NAME = re.compile(r"[A-Za-z_]\w*")


def check(query: str, parse: Callable[[str], str]) -> str:
    """Return the query without what follows its statement.

    Args:
        query: what somebody asks.
        parse: DuckDB's `json_serialize_sql` of a query.

    Raises:
        QueryRefused: it is not one SELECT, or uses what is not allowed.
    """
    if len(query.encode("utf-8", "replace")) > QUERY_LIMIT_BYTES:
        raise QueryRefused(f"Expected a query of up to {QUERY_LIMIT_BYTES} bytes. Shorten it.")
    if "\0" in query:
        raise QueryRefused("Expected text without NUL characters.")
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise QueryRefused(f"This is not SQL that DuckDB reads: {error}") from error
    if len(statements) != 1:
        raise QueryRefused(f"Expected one SELECT, got {len(statements)} statements. Send them one by one.")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise QueryRefused(f"Expected a SELECT, got {kind.name}. The store answers questions only.")
    text = str(statements[0].query).strip().rstrip(";").strip()
    try:
        tree = json.loads(parse(text))
    except duckdb.Error as error:
        raise QueryRefused(f"This is not SQL that DuckDB reads: {error}") from error
    if tree.get("error"):
        raise QueryRefused(f"Expected a plain SELECT: {tree.get('error_message')}")
    _walk(tree["statements"])
    return text


def _walk(tree: Any) -> None:
    for node, in_table_function in _dicts(tree, False):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in NODES:
            raise QueryRefused(
                f"Expected a query that only reads, got {kind.removesuffix('_QUERY_NODE')} inside of it."
            )
        if kind == "BASE_TABLE":
            _table(node)
        elif kind == "TABLE_FUNCTION":
            name = str(node.get("function", {}).get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise QueryRefused(
                    f"The table function {name} is not allowed. Query the fleet's own tables.", function=name
                )
        elif kind == "SHOW_REF":
            if "query" not in node and node.get("table_name") not in ('"tables"', "__show_tables_expanded"):
                raise QueryRefused("Only SHOW TABLES and DESCRIBE are allowed.")
        elif "function_name" in node and not in_table_function:
            name = str(node["function_name"]).lower()
            if name in REFUSED_FUNCTIONS:
                raise QueryRefused(f"The function {name} is not allowed in queries to the store.", function=name)


def _table(node: dict[str, Any]) -> None:
    name, schema, catalog = (str(node.get(key) or "") for key in ("table_name", "schema_name", "catalog_name"))
    if not NAME.fullmatch(name) or schema.lower() not in SCHEMAS or catalog.lower() in ("system", "temp"):
        full = ".".join(part for part in (catalog, schema, name) if part)
        raise QueryRefused(f"Expected one of the fleet's tables, got {full}. `SHOW TABLES` lists them.", table=full)


def _dicts(tree: Any, in_table_function: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield every object of the tree, and whether it is the call of a table function itself."""
    stack: list[tuple[Any, bool]] = [(tree, in_table_function)]
    while stack:
        item, inside = stack.pop()
        if isinstance(item, dict):
            yield item, inside
            is_call = item.get("type") == "TABLE_FUNCTION"
            stack.extend((value, is_call and key == "function") for key, value in item.items())
        elif isinstance(item, list):
            stack.extend((value, False) for value in item)
