"""ProgressBar bars: one that moves on a terminal, and a line a minute where there is none, as in a log file."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 60.0
"""Seconds between two lines where no terminal is."""


class ProgressBar(tqdm):
    """A `tqdm` on stderr; without a terminal it writes lines, at its start, every `LINE_EVERY_S` and at its end."""

    def __init__(self, *args: Any, **more: Any):
        if not sys.stderr.isatty():
            more = {"mininterval": LINE_EVERY_S, "maxinterval": LINE_EVERY_S, "miniters": 1, "ncols": 100} | more
        super().__init__(*args, **more)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """As tqdm's; lines where it would overwrite one."""
        if sys.stderr.isatty():
            return tqdm.status_printer(file)
        shown = []

        def write(text: str) -> None:
            # What clears a bar is no line. Bars that stay write the last line break themselves.
            if text.strip() and text not in shown[-1:]:
                file.write(f"\n{text}" if shown else text)
                file.flush()
                shown.append(text)

        return write
