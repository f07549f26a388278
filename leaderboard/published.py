"""Published records: one line per cell in `records.jsonl`, without predictions, and the tables that follow from them.

Only statistics over images leave a results folder: licensed images, and logits on them, stay where they are. Without
predictions ranks resample seeds alone, and the tables say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from harness.errors import DataError, first_line
from harness.record import Record, Status
from harness.schema import read_record, seal
from harness.store import write_bytes

RECORDS = "records.jsonl"
_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+-]+){2,}")  # an absolute path in a sentence: nobody else has it


def write_published(records: Iterable[Record], folder: Path) -> int:
    """Write the records of a board, sorted, with traces left out and absolute paths cut to their last part.

    Returns:
        number of records.

    Raises:
        DataError: none of the records has numbers, or the folder cannot be written.
    """
    held = sorted(records, key=lambda record: (record.suite, record.row, record.seed, record.id))
    if not any(record.status is Status.DONE for record in held):
        raise DataError("there is nothing to publish: none of these cells has numbers")
    lines = [seal(_public(record)).model_dump_json() for record in held]
    write_bytes(folder / RECORDS, ("\n".join(lines) + "\n").encode())
    return len(lines)


def read_published(folder: Path) -> tuple[list[Record], list[str]]:
    """Records of a published board, and what is wrong with lines that are none."""
    path, found, damaged = folder / RECORDS, [], []
    if not path.exists():
        return [], []
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        return [], [f"{path} cannot be read ({error})"]
    for number, line in enumerate(lines, start=1):
        try:
            found.append(read_record(line))
        except (ValidationError, ValueError) as error:
            damaged.append(f"{path}, line {number}, is no record ({first_line(error)})")
    return found, damaged


def _public(record: Record) -> Record:
    reason = _PATH.sub(lambda match: match[0].rsplit("/", 1)[-1], record.reason)
    provenance = json.loads(_PATH.sub(lambda match: match[0].rsplit("/", 1)[-1], json.dumps(record.provenance)))
    return record.model_copy(update={"trace": "", "reason": reason, "provenance": provenance})
