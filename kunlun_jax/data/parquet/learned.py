"""What the training rows say about columns of all splits: vocabularies, and the means that stand in for nulls."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kunlun_jax.data.parquet.vocabulary import Vocabulary

FOLDER = "learned"
_FILE = "learned.json"


@dataclasses.dataclass(frozen=True)
class Learned:
    """Learned from training examples, and from the events before the last of their requests.

    Attributes:
      vocabularies: by table.
      means: of dense features and fields of events ("click.amount") whose nulls an indicator marks, without values out
        of all proportion.
    """

    vocabularies: dict[str, Vocabulary]
    means: dict[str, float]

    def write(self, folder: Path) -> None:
        """Writes them into ``learned/`` of a folder, if there are any: a Parquet file for each vocabulary."""
        if not self.vocabularies and not self.means:
            return
        (folder / FOLDER).mkdir()
        files = {}
        for number, (table, vocabulary) in enumerate(self.vocabularies.items()):
            name = f"vocabulary.{number}.parquet"
            vocabulary.write(folder / FOLDER / name)
            files[table] = {"file": name, "values": len(vocabulary.values), "left_out": vocabulary.left_out}
        text = json.dumps({"vocabularies": files, "means": self.means}, indent=2)
        (folder / FOLDER / _FILE).write_text(text + "\n")


def read_learned(folder: Path) -> dict[str, Any]:
    """What `Learned.write` says in the folder ``learned/``: vocabularies with their files and counts, and means."""
    return json.loads((folder / _FILE).read_text())
