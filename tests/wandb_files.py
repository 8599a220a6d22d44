"""What W&B leaves in a run's folder when it is offline, read without W&B."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


def recorded(file: Path) -> Iterator[Record]:
    """The records of a W&B file: LevelDB's log format (blocks of 32 KiB) after seven bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if (room := -at % 32768) and room < 7:  # too little for a header: a block's end is empty
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def records(folder: Path) -> list[list[Record]]:
    """What each attempt of a run left for W&B, the first one's first."""
    return [list(recorded(file)) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def rows(attempt: list[Record]) -> list[dict[str, float]]:
    """The rows of curves, without what W&B adds."""
    found = [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in attempt if record.HasField("history")
    ]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in found]


def summary(attempt: list[Record]) -> dict[str, Any]:
    """The values that stand for a whole run, without what W&B adds and the last row's."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for record in attempt if record.HasField("summary") for item in record.summary.update}
