"""Files of JSON lines that tell when they were changed: each line ends with a CRC-32 of itself and of the lines before.

So a number that a disk or an editor made another one is not drawn, compared or continued from. A checksum is no
signature: who changes a file on purpose can write the checksum as well.
"""

import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_END = re.compile(rb', "crc32": "([0-9a-f]{8})"}$')
_END_BYTES = len(', "crc32": "01234567"}\n')


def text_of(lines: Iterable[dict[str, Any]], crc: int = 0) -> str:
    """Lines as they are stored.

    Args:
      lines: JSON objects that are not empty.
      crc: of the lines before; 0 if there are none.

    Raises:
      ValueError: a value is NaN or infinite.
    """
    texts = []
    for line in lines:
        text = json.dumps(line, allow_nan=False)
        crc = zlib.crc32(text.encode(), crc)
        texts.append(f'{text[:-1]}, "crc32": "{crc:08x}"}}\n')
    return "".join(texts)


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines to a file of whole lines, or makes it; they are on disk when this returns.

    Raises:
      ValueError: a value is NaN or infinite, and nothing was written.
    """
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        end = _END.search(file.read())
        file.write(text_of(lines, int(end[1], 16) if end else 0).encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, fields: tuple[str, ...] = ("kind", "step")) -> list[dict[str, Any]]:
    """The lines of a file, without their checksums; an unfinished last line is left out, an absent file has none.

    Args:
      path: of the file.
      fields: that every line must have, of "kind" and "step".

    Raises:
      ValueError: a line before the last is not valid JSON, no line of metrics, or not as it was written.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    lines, crc = [], 0
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            found = json.loads(line)
        except ValueError as error:  # of its bytes, too
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error
        kinds = {"step": int, "kind": str}
        if not isinstance(found, dict) or any(type(found.get(name)) is not kinds[name] for name in fields):
            raise ValueError(f"{path}, line {number} must be an object with {' and '.join(fields)}")
        end = _END.search(line)
        crc = zlib.crc32(line[: end.start()] + b"}" if end else line, crc)
        if not end or int(end[1], 16) != crc:
            raise ValueError(
                f"{path}, line {number} is not as it was written: its crc32 is {found.get('crc32', 'missing')!r}, not "
                f"{crc:08x}; it, or a line before it, was changed or lost"
            )
        del found["crc32"]
        lines.append(found)
    return lines
