"""A BARS data set becomes one of ours: ``python -m kunlun_jax.data.import_bars AmazonElectronics_x1 FOLDER OUT``

FOLDER holds train.csv and test.csv as the board gives them; `kunlun_jax.data.sets.bars` says what is in them. The
board's splits are kept, row by row. The files are read in blocks: memory grows with the distinct values, and by 16
bytes for each distinct history of a split, not with the rows.

Each row names its history by a number, and rows of a split with the same lists share it, so it is stored once. Events
have no times; the n-th newest is n hours old, as every model has its age and its rank as inputs and the order is all
there is. All requests of a split are at one moment, so rows keep the order of the file. The moments of two splits lie
so far apart that no event of the later one is among those that vocabularies are made of.
"""

# pyright: reportAttributeAccessIssue=false
import dataclasses
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # its functions are created at import, which pyright does not see
import pyarrow.parquet as pq
import tyro
from jaxtyping import Int64
from pyarrow import csv

from kunlun_jax.data.parquet.validate import tells_of
from kunlun_jax.data.parquet.vocabulary import Counter, as_text
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets.bars import SETS, BarsSet, History
from kunlun_jax.data.sets.official import check_header, check_whole
from kunlun_jax.progress import ProgressBar

LONGEST = 10_000
"""Events of a row's longest history, at most; also hours between two splits."""
REQUESTS_H = {"train": LONGEST, "valid": 2 * LONGEST, "test": 3 * LONGEST}
"""Hours at which the requests of each split are."""
BLOCK_BYTES = 1 << 25
"""Bytes of a file that are read at once."""
_HOUR_MS = 3_600_000
_ID = "[0-9]{1,18}"
_LIST = rf"^({_ID}(\^{_ID})*)?$"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which files become what."""

    name: tyro.conf.Positional[Literal["AmazonElectronics_x1", "KuaiVideo_x1", "TaobaoAd_x1"]]
    """The board's name of the data set."""
    folder: tyro.conf.Positional[Path]
    """Folder of train.csv and test.csv."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""
    valid: float = 0.0
    """Share of train.csv, its last rows, that becomes a split "valid" and is not trained on; 0: none, as on the board,
    which chose on test.csv."""


def import_bars(bars: BarsSet, folder: Path, out: Path, valid: float = 0.0) -> dict[str, int]:
    """Converts the files of `folder` into the new folder `out`, in the layout of docs/own_data.md.

    Returns:
      split -> rows.

    Raises:
      ValueError: a file is missing or wrong, `valid` is out of range, or `out` is there already; names file, line,
        column, value and what would be right.
    """
    if not 0 <= valid < 1:
        raise ValueError(f"valid is {valid}; it must be a share of the training rows, from 0 to below 1")
    if out.exists():
        raise ValueError(f"{out}: this folder is there already; name a new one, or remove it")
    files = {split: folder / f"{split}.csv" for split in ("train", "test")}
    for path in files.values():
        check_whole(path, bars.official, f"a CSV file with the columns {list(_columns(bars))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    writer = _Writer(work)
    try:
        conversion = _Conversion(bars, writer)
        first_valid = round(_count_rows(files["train"]) * (1 - valid)) if valid else sys.maxsize
        for block in _blocks(bars, files["train"], last_line=first_valid + 1):
            conversion.add("train" if block.line < first_valid + 2 else "valid", block)
        for block in _blocks(bars, files["test"]):
            conversion.add("test", block)
        writer.close()
        (work / "schema.json").write_text(conversion.schema().to_json())
        work.chmod(0o755)
        work.rename(out)
    finally:
        writer.close()
        shutil.rmtree(work, ignore_errors=True)
    return conversion.rows


def _columns(bars: BarsSet) -> tuple[str, ...]:
    return (bars.label, *bars.ids, *bars.dense, *bars.lists)


def _count_rows(path: Path) -> int:
    """Lines below the first."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b"")) - 1


@dataclasses.dataclass(frozen=True)
class _Block:
    """Some lines of a file, as text."""

    bars: BarsSet
    path: Path
    line: int  # of the first row
    rows: pa.RecordBatch

    def refuse(self, column: str, wrong: np.ndarray, right: str) -> None:
        """Raises a ValueError that tells of the first row that is wrong, if any is."""
        if wrong.any():
            row = int(np.argmax(wrong))
            text = self.rows[column][row].as_py()
            value = text if len(text) <= 60 else f"{text[:60]} ..."
            problem = f"line {self.line + row}, column {column!r} is {value!r}; it must be {right}"
            raise self.bars.official.error(self.path, problem)

    def ids(self, column: str) -> pa.Array:
        """int64."""
        self._match(column, f"^{_ID}$", "a whole number of at most 18 digits")
        return self.rows[column].cast(pa.int64())

    def labels(self) -> pa.Array:
        """int8."""
        self._match(self.bars.label, "^[01]$", "0 or 1")
        return self.rows[self.bars.label].cast(pa.int8())

    def numbers(self, column: str) -> pa.Array:
        """float64."""
        # What Arrow takes for a number, but for its names of infinity and NaN.
        self._match(column, r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$", "a number")
        return self.rows[column].cast(pa.float64())

    def check_lists(self) -> None:
        """Refuses lists that are none."""
        for column in self.bars.lists:
            self._match(column, _LIST, 'whole numbers of at most 18 digits with "^" between them, or empty')

    def _match(self, column: str, pattern: str, right: str) -> None:
        good = pc.match_substring_regex(self.rows[column], pattern)
        self.refuse(column, ~good.to_numpy(zero_copy_only=False), right)


def _blocks(bars: BarsSet, path: Path, last_line: int = sys.maxsize) -> Iterator[_Block]:
    """The rows of a file in blocks, none with rows both up to `last_line` and after it."""
    names = _columns(bars)
    check_header(path, names, bars.official)
    # With threads an error would not tell the line, and the conversion is no faster.
    read = csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    # An empty line is a row of empty fields, which is refused; if it were left out, lines in messages would be wrong.
    parse = csv.ParseOptions(ignore_empty_lines=False)
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=list(names))
    line = 2
    try:
        with (
            csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as reader,
            ProgressBar(desc=f"converting {path.name}", unit="rows", unit_scale=True, delay=2.0) as bar,
        ):
            for rows in reader:
                cut = min(max(last_line + 1 - line, 0), len(rows))
                for part in (rows.slice(0, cut), rows.slice(cut)):
                    if len(part):
                        yield _Block(bars, path, line, part)
                        line += len(part)
                bar.update(len(rows))
    except pa.ArrowInvalid as error:
        raise bars.official.error(path, f"is not the CSV expected: {error}") from error
    if line == 2:
        raise bars.official.error(path, "holds no rows below its header")


class _Conversion:
    """What has been converted so far."""

    def __init__(self, bars: BarsSet, writer: "_Writer"):
        self.bars, self._writer = bars, writer
        self.rows: dict[str, int] = {}
        self._counters = {name: Counter() for name in bars.categorical}
        self._histories = _Numbers(0)

    def add(self, split: str, block: _Block) -> None:
        """Writes the examples of a block, and those of its histories that the split did not have."""
        if split not in self.rows:
            self._histories = _Numbers(self._histories.following)
        self.rows[split] = self.rows.get(split, 0) + len(block.rows)
        block.check_lists()
        keys, new = self._histories.of(pc.binary_join_element_wise(*(block.rows[c] for c in self.bars.lists), "|"))
        ids = {name: block.ids(name) for name in self.bars.ids}
        columns = {
            "request_time_ms": pa.repeat(REQUESTS_H[split] * _HOUR_MS, len(block.rows)),
            "history_key": pa.array(keys),
            **ids,
            **{name: block.numbers(name) for name in self.bars.dense},
            self.bars.label: block.labels(),
        }
        self._writer.write(f"examples/{split}", pa.table(columns))
        counted = [(name, ids[name]) for name in self.bars.categorical]
        for history in self.bars.histories:
            events = _events(block, history, new, keys[new], REQUESTS_H[split])
            self._writer.write(f"events/{history.event}", events)
            counted += [(name, events[name]) for name in history.fields.values()]
        if split == "train":
            for name, values in counted:
                self._counters[name].add(as_text(values))

    def schema(self) -> Schema:
        """Its tables have a row for each value that is frequent enough in the training rows and their histories."""
        counts = {name: counter.counts()["count"].to_numpy() for name, counter in self._counters.items()}
        return self.bars.schema({name: max(1, int((n >= self.bars.min_count).sum())) for name, n in counts.items()})


def _events(block: _Block, history: History, rows: np.ndarray, keys: np.ndarray, request_h: int) -> pa.Table:
    """The events of the histories of some `rows` of a block, oldest first; a field without a value is null."""
    lists = {column: pc.split_pattern(block.rows[column].take(pa.array(rows)), "^") for column in history.fields}
    # The list of an empty text is one empty text.
    empty = {column: pc.equal(block.rows[column].take(pa.array(rows)), "") for column in lists}
    lengths = {
        column: np.where(empty[column].to_numpy(zero_copy_only=False), 0, pc.list_value_length(texts).to_numpy())
        for column, texts in lists.items()
    }
    longest = np.max(list(lengths.values()), axis=0).astype(np.int64)
    for column, found in lengths.items():
        wrong = np.zeros(len(block.rows), bool)
        wrong[rows] = found > LONGEST
        block.refuse(column, wrong, f"of at most {LONGEST} numbers")
        wrong[rows] = found != longest
        if not history.may_differ:
            block.refuse(column, wrong, f"as long as the others of {list(lists)}")
    ends = np.cumsum(longest)
    rank = np.repeat(ends, longest) - np.arange(longest.sum())  # 1 for the newest
    columns = {
        "history_key": pa.array(np.repeat(keys, longest)),
        "time_ms": pa.array((request_h - rank) * _HOUR_MS),
    }
    for column, field in history.fields.items():
        there = rank <= np.repeat(lengths[column], longest)
        texts = pc.list_flatten(lists[column])
        values = np.zeros(len(rank), np.int64)
        values[there] = texts.filter(pc.not_equal(texts, "")).cast(pa.int64()).to_numpy()
        columns[field] = pa.array(values, mask=~there)
    return pa.table(columns)


class _Numbers:
    """Numbers of the distinct histories of a split, rising in the order of first appearance.

    Histories are told apart by 8 bytes of a digest: of 25 million distinct ones, two are taken for one with a
    probability of 0.00002.
    """

    def __init__(self, first: int):
        self.following = first
        self._digests, self._numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # sorted by digest

    def of(self, texts: pa.Array) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " new"]]:
        """The number of each text, and the rows, rising, of those that were not seen before."""
        digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts.cast(pa.binary()).to_pylist())
        distinct, first, inverse = np.unique(
            np.frombuffer(b"".join(digests), np.uint64), return_index=True, return_inverse=True
        )
        place = np.searchsorted(self._digests, distinct)
        known = place < len(self._digests)
        known[known] = self._digests[place[known]] == distinct[known]
        numbers = np.empty(len(distinct), np.int64)
        numbers[known] = self._numbers[place[known]]
        rows = np.sort(first[~known])
        numbers[~known] = self.following + np.searchsorted(rows, first[~known])
        self.following += len(rows)
        self._digests = np.insert(self._digests, place[~known], distinct[~known])
        self._numbers = np.insert(self._numbers, place[~known], numbers[~known])
        return numbers[inverse], rows


class _Writer:
    """A Parquet file in each folder, a row group for each block."""

    def __init__(self, root: Path):
        self._root, self._files = root, dict[str, pq.ParquetWriter]()

    def write(self, folder: str, table: pa.Table) -> None:
        """Adds rows to the file of a folder."""
        if folder not in self._files:
            (self._root / folder).mkdir(parents=True)
            path = self._root / folder / "part-00000.parquet"
            self._files[folder] = pq.ParquetWriter(path, table.schema, compression="zstd")
        self._files[folder].write_table(table)

    def close(self) -> None:
        """Ends all files."""
        for file in self._files.values():
            file.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = tyro.cli(Arguments, args=arguments, prog="python -m kunlun_jax.data.import_bars", description=__doc__)
    bars = SETS[args.name]
    try:
        rows = import_bars(bars, args.folder, args.out, args.valid)
        if not tells_of(args.out, otherwise="remove it, get the files again, and convert them again"):
            return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {"train": rows["train"] + rows.get("valid", 0), "test": rows["test"]}
    if found != bars.rows:
        print(f"\nThe board's files have {dict(bars.rows)} rows and these {found}: scores are not comparable with it.")
    print(f"\nTrain on it:\n  python -m experiments.train din/{args.name.lower()} --data.root {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
