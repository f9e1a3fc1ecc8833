"""Stage 6, the store: the only process that opens the DuckDB file. Imported by nobody; reached as an actor.

`actor` is the store itself, `database` its synchronous core, `writer` the group commit between them, `memory` the
twin without a file. `duckdb` is imported in this package alone.
"""
