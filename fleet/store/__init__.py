"""DuckDB: schema, writer, queries. Stage 6; the only importer of duckdb."""
