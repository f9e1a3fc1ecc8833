"""The answer of a query: Arrow underneath, pandas or plain rows on top."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Rows:
    """Rows of a query; iterating gives dicts.

    Args:
        data: an Arrow IPC stream.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._table: Any = None

    def arrow(self) -> Any:
        """Return a `pyarrow.Table`."""
        if self._table is None:
            import pyarrow.ipc

            with pyarrow.ipc.open_stream(self._data) as reader:
                self._table = reader.read_all()
        return self._table

    def pandas(self) -> Any:
        """Return a `pandas.DataFrame`."""
        return self.arrow().to_pandas()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.arrow().column_names)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as tuples."""
        columns = [column.to_pylist() for column in self.arrow().columns]
        return list(zip(*columns, strict=True))

    def dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dicts."""
        found: list[dict[str, Any]] = self.arrow().to_pylist()
        return found

    def __len__(self) -> int:
        return int(self.arrow().num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dicts())

    def __repr__(self) -> str:
        return f"Rows({len(self)} rows: {', '.join(self.columns)})"
