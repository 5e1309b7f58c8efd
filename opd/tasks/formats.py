"""From a file to rows: JSON Lines, JSON, CSV and Parquet, whatever their encoding, separator or packing."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd.files import decode, parse
from opd.tasks import FILE_TYPES, file_type

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


class Row(NamedTuple):
    """A row as it was read: its first line in the file, or its number; its columns, or why there are none."""

    line: int
    columns: Mapping[str, Any] | str


class Table(NamedTuple):
    """The rows of a file, what their numbers count, and how the file was read where that is not plain."""

    rows: list[Row]
    unit: str = "line"
    said: str = ""


def read_table(path: Path) -> Table:
    """Read every row of a file.

    Raises:
        ValueError: the file is missing, unreadable or of another type; one sentence says what to do.
    """
    reader = _READERS.get(file_type(path))
    if reader is None:
        raise ValueError(f"{path.name} is not a {', '.join(FILE_TYPES[:-1])} or {FILE_TYPES[-1]} file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}.") from error
    return reader(data, path)


def _json(data: bytes, path: Path) -> Table:
    """Read objects, one a line or all in one list.

    What text_of refuses, such as bytes that are no UTF-8, it refuses in the row where they stand.
    """
    text = decode(data, path)
    first = text.lstrip().partition("\n")[0]
    if _is_json(first) and (first[0] != "[" or not _is_json(text)):
        return Table(list(_json_lines(text)))
    try:
        whole = parse(text)
    except ValueError as error:
        if first.startswith("["):
            raise ValueError(
                f"{path} begins like a list of rows in JSON, but it is none: {error}."
            ) from error
        return Table(list(_json_lines(text)))
    if not isinstance(whole, list):
        raise ValueError(f"{path} is a single JSON value: make it a list of rows, or write one row a line.")
    rows = (item if isinstance(item, dict) else "it is not a JSON object" for item in whole)
    return Table([Row(number, row) for number, row in enumerate(rows, start=1)], "item")


def _is_json(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            columns = parse(line)
        except ValueError as error:
            yield Row(number, f"it is not valid JSON ({error})")
            continue
        yield Row(number, columns if isinstance(columns, dict) else "it is not a JSON object")


def _csv(data: bytes, path: Path) -> Table:
    """Read a header and rows; of commas, semicolons and tabs, what makes the most columns separates them."""
    text = decode(data, path)
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=lambda s: len(next(csv.reader([header], delimiter=s), ())))
    said = "" if separator == "," else f"Its columns are separated by {SEPARATORS[separator]}."
    return Table(list(_csv_rows(text, separator)), said=said)


def _csv_rows(text: str, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(number, f"it is not valid CSV ({error})")
            continue
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
        elif len(cells) != len(header):
            yield Row(number, f"it has {len(cells)} fields where the header has {len(header)}")
        else:
            columns = dict(zip(header, cells, strict=True))
            yield Row(number, {name: _json_cell(cell) for name, cell in columns.items()})


def _json_cell(cell: str) -> Any:  # noqa: ANN401
    """Chat messages and lists of texts in a CSV cell are JSON; any other text is itself."""
    start = cell.lstrip()
    is_chat = start.startswith("[") and ('"role"' in cell or '"from"' in cell)
    if not is_chat and not start.startswith('["'):
        return cell
    try:
        return parse(cell)
    except ValueError as error:
        return ValueError(f"its chat messages are not valid JSON ({error})") if is_chat else cell


def _parquet(data: bytes, path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"To read {path}, install the pyarrow package: pip install opd-studio[data]."
        ) from None
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return Table([Row(number, columns) for number, columns in enumerate(rows, start=1)], "row")


_READERS: dict[str, Callable[[bytes, Path], Table]] = dict(
    zip(FILE_TYPES, (_json, _json, _csv, _csv, _parquet), strict=True)
)
