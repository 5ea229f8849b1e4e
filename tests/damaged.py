"""Parquet files of which a column cannot be read: whoever can do without it gets on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq


def damage(path: Path, column: str, groups: Iterable[int] | None = None) -> None:
    """Overwrite a column, in its row groups with these numbers or all."""
    metadata = pq.read_metadata(path)
    place = metadata.schema.to_arrow_schema().names.index(column)
    with path.open("r+b") as file:
        for group in range(metadata.num_row_groups) if groups is None else groups:
            chunk = metadata.row_group(group).column(place)
            file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
            file.write(b"\xff" * chunk.total_compressed_size)
