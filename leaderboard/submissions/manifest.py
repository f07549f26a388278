"""What a submission says about itself: the schema of `manifest.json`. Unknown keys and loose types are faults."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.config import Track
from leaderboard.submissions.faults import MANIFEST, MAX_ARRAY, MAX_CELLS, Fault
from leaderboard.tables import CODES

FORMAT, VERSION = "vabench-submission", 1
_PLAIN = re.compile(
    r"[A-Za-z0-9 _.,:;=()\[\]{}'\"@+*/%~^#?!-]+"
)  # one line, no markup, no letters that turn text around
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _plain(text: str) -> str:
    if text and not _PLAIN.fullmatch(text):
        raise ValueError("plain ASCII text in one line, without < > & and control characters")
    return text


def _flag(name: str) -> str:
    if name not in CODES:
        raise ValueError(f"unknown kind of supervision; known: {', '.join(CODES)}")
    return name


def _small(value: Any) -> Any:
    """JSON of settings: short plain keys and texts, finite numbers."""
    if isinstance(value, dict):
        return {_plain(str(key)[:201]): _small(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_small(item) for item in value]
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, float) and not abs(value) < 1e300:
        raise ValueError("a number that is not finite")
    return value


Short = Annotated[str, Field(max_length=200), AfterValidator(_plain)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Settings = Annotated[dict[str, Any], Field(max_length=200), AfterValidator(_small)]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Array(_Model):
    """A member that holds an array."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]+\.npy$", max_length=200)]
    bytes: Annotated[int, Field(ge=1, le=MAX_ARRAY)]
    sha256: Hash


class Claim(_Model):
    """One track of a cell as its author reports it, and the logits per test rendering."""

    rule: Short
    candidate: Annotated[int, Field(ge=0, lt=1_000)]
    tried: Annotated[int, Field(ge=1, le=1_000)]
    config: Settings
    supervision: Annotated[list[Annotated[str, AfterValidator(_flag)]], Field(max_length=len(CODES))]
    ledger: Annotated[dict[Short, _Count], Field(max_length=100)]
    cost_s: _Count
    metrics: Annotated[dict[Short, _Finite | None], Field(max_length=200)]
    logits: Annotated[dict[Name, Array], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _one_of_those_tried(self) -> Claim:
        if self.candidate >= self.tried:
            raise ValueError(f"candidate {self.candidate} (counted from 0) is none of the {self.tried} tried")
        return self


class Claimed(_Model):
    """One cell: suite x method x mask source x seed. id: the record's, a hash of its config, code and data."""

    id: Hash
    suite: Short
    suite_version: Short
    data: Hash
    row: Annotated[Short, Field(min_length=1)]
    label: Short
    method: Annotated[Short, Field(min_length=1)]
    mask_source: Short | None
    block: Literal["reference", "baseline", "method", "oracle", "control"]
    simulated: bool
    model: Short
    seed: Annotated[int, Field(ge=0, le=2**31)]
    config: Settings
    base: Annotated[dict[Short, _Finite | None], Field(max_length=50)]
    ids: Array
    tracks: Annotated[dict[Track, Claim], Field(min_length=1)]


class Manifest(_Model):
    """The whole submission. seeds: those of every row; rows with fewer are faults."""

    format: Literal["vabench-submission"]
    version: Literal[1]
    name: Name
    vabench: Short
    commit: Short
    dirty: bool
    hardware: Annotated[dict[Short, Short | int | _Finite | bool | None], Field(max_length=30)]
    packages: Annotated[dict[Short, Short], Field(max_length=50)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1, max_length=100)]
    cells: Annotated[list[Claimed], Field(min_length=1, max_length=MAX_CELLS)]


def parse(values: dict[str, Any]) -> tuple[Manifest | None, list[Fault]]:
    """The manifest, or every place at which it breaks the schema (the first twenty)."""
    try:
        return Manifest.model_validate_json(_dump(values)), []
    except ValidationError as error:
        found = []
        for problem in error.errors(include_input=False, include_url=False)[:20]:
            place = ".".join(ascii(part).strip("'") if isinstance(part, str) else str(part) for part in problem["loc"])
            found.append(Fault(MANIFEST, f"{place[:200] or 'the whole'}: {problem['msg'][:200]}"))
        return None, found


def _dump(values: dict[str, Any]) -> str:
    import json

    return json.dumps(values)
