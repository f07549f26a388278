"""The record of a cell: everything a reader needs to trust, trace and recompute a number. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 3  # raise it when fields change, and add the step in `harness.schema`: old records stay readable
METRIC_VERSION = 2  # raise it when a metric's definition changes: every record becomes stale
Track = Literal["preregistered", "tuned"]
ModelT = TypeVar("ModelT", bound=BaseModel)


class Status(StrEnum):
    """How a cell ended. Only `done` has numbers."""

    DONE = "done"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not applicable"
    FAILED = "failed"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Candidate(_Model):
    """One configuration that was fitted. `selection` holds its score under each rule; `test` was read after the
    choice was frozen and exists so that `test_selected` and other rules can be reported.

    seconds: of its fit; what the candidates of a tuned track do alike (`RunContext.once`) counts for the first alone.
    """

    config: dict[str, Any]
    seconds: float
    notes: dict[str, Any] = Field(default_factory=dict)
    selection: dict[str, float | None] = Field(default_factory=dict)
    test: dict[str, float | None] = Field(default_factory=dict)


class Curve(_Model):
    """The loss of a training with `harness.training.fit`. steps: how many; 0: the model was not trained by it.

    loss: means over equal spans of steps (`harness.curve`), None where one was no finite number. What the loss is
    differs between methods (a penalty counts), so curves of two methods are not to be compared.
    """

    steps: int = Field(ge=0)
    loss: list[float | None]


class TrackResult(_Model):
    """A candidate as one track reports it, with what that track consumed.

    curve: its training loss; None: not recorded (before schema version 3, or a submission).
    ledger: `kind/split` -> items read. cost_s: standalone seconds (what the method would cost alone).
    metrics: name -> number, plus `group_accuracy` and `group_counts` lists.
    """

    candidate: int
    rule: str
    supervision: list[str]
    ledger: dict[str, float]
    cost_s: float
    metrics: dict[str, Any]
    curve: Curve | None = None


class Record(_Model):
    """One cell: suite x method x mask source x seed."""

    schema_version: int = SCHEMA_VERSION
    id: str
    status: Status
    reason: str = ""
    trace: str = ""
    suite: str
    suite_source: str
    row: str
    label: str = ""  # what the preset calls the row; empty where it says nothing
    method: str
    mask_source: str | None
    block: str
    simulated: bool = False
    model: str
    seed: int
    config: dict[str, Any]
    identity: dict[str, Any]
    tracks: dict[Track, TrackResult] = Field(default_factory=dict)
    candidates: list[Candidate] = Field(default_factory=list)
    base: dict[str, float | None] = Field(default_factory=dict)  # the base model's scores, for paired differences
    base_curve: Curve | None = None  # the base model's training loss; None: not recorded
    audit: dict[str, Any] = Field(
        default_factory=dict
    )  # verdict and mask fidelity, sampling audit: measured, not consumed
    groups: dict[str, dict[str, int]] = Field(default_factory=dict)
    spent: dict[str, float] = Field(default_factory=dict)
    standalone: dict[str, float] = Field(default_factory=dict)
    wall_s: float = 0.0
    provenance: dict[str, Any] = Field(default_factory=dict)
    predictions_sha256: str | None = None
    seal: str | None = None  # sha256 over all other fields (`harness.schema`)

    @classmethod
    def trusted(cls, text: str) -> Record:
        """A record from its own `model_dump_json`, not validated again: five times as fast. Never for a file."""
        values: dict[str, Any] = from_json(text)
        values["status"] = Status(values["status"])
        for track in values["tracks"].values():
            track["curve"] = _curve(track["curve"])
        values["tracks"] = {name: _whole(TrackResult, track) for name, track in values["tracks"].items()}
        values["base_curve"] = _curve(values["base_curve"])
        values["candidates"] = [_whole(Candidate, candidate) for candidate in values["candidates"]]
        return _whole(cls, values)


def _curve(values: dict[str, Any] | None) -> Curve | None:
    return None if values is None else _whole(Curve, values)


def _whole(cls: type[ModelT], values: dict[str, Any]) -> ModelT:
    """pydantic's `model_construct`, without its look at every field where all of them are there."""
    if values.keys() != cls.model_fields.keys():
        return cls.model_construct(**values)
    found = cls.__new__(cls)
    found.__setstate__(
        {
            "__dict__": values,
            "__pydantic_fields_set__": set(values),
            "__pydantic_extra__": None,
            "__pydantic_private__": None,
        }
    )
    return found


def plain(value: Any) -> Any:
    """JSON-safe copy of nested numbers: numpy and torch scalars become Python's, NaN and infinity become None.

    Raises:
        TypeError: a value that JSON has no word for.
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot stand in a record; note numbers, text, lists and dicts only")


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell and track (cells without numbers: one row with an empty track).

    Columns: suite, source, row, label, method, mask_source, block, simulated, model, seed, track, status, reason,
    supervision (names joined by +), cost_s, wall_s, id, ledger (dict), base.* (the base model's scores), and every
    scalar metric under its own name.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in records:
        head = {
            "suite": record.suite,
            "source": record.suite_source,
            "row": record.row,
            "label": record.label or record.row,
            "method": record.method,
            "mask_source": record.mask_source,
            "block": record.block,
            "simulated": record.simulated,
            "model": record.model,
            "seed": record.seed,
            "status": record.status.value,
            "reason": record.reason,
            "wall_s": record.wall_s,
            "id": record.id,
            **{f"base.{k}": v for k, v in record.base.items()},
        }
        if not record.tracks:
            rows.append({**head, "track": ""})
        for track, result in record.tracks.items():
            scalars = {k: v for k, v in result.metrics.items() if not isinstance(v, list | dict)}
            rows.append(
                {
                    **head,
                    "track": track,
                    "supervision": "+".join(result.supervision),
                    "cost_s": result.cost_s,
                    "ledger": result.ledger,
                    **scalars,
                }
            )
    return pd.DataFrame(rows)
