"""Looks a submission through: schema, files, suite, seeds and order; then recomputes what predictions determine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leaderboard.submissions.faults import MANIFEST, Fault, Refused, refuse
from leaderboard.submissions.manifest import Array, Claim, Claimed, Manifest, parse
from leaderboard.submissions.reading import Members, read_array, read_manifest

if TYPE_CHECKING:
    from harness.suite import Suite, SuiteData

CLOSE = 1e-6  # a reported number may differ from the recomputed one by rounding
LISTED = 50  # faults after which checking stops
_LEDGER_FLAGS = {"masks": "masks", "sentences": "text", "val_groups": "val_groups", "decorrelated": "decorrelated"}
_LOGITS = ("<f4",)


@dataclass
class Verified:
    """The verdict. scores: by cell (position in the manifest) and track, what was recomputed from its predictions."""

    manifest: Manifest | None = None
    faults: list[Fault] = field(default_factory=list)
    scores: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    counts: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.manifest is not None and not self.faults


class Suites:
    """The verifier's own copies of the suites that a board takes, by full name."""

    def __init__(self, specs: Iterable[str] = ()):
        from harness.registry import registry
        from harness.spec import parse_spec

        made = [registry("suites").create(parse_spec(text)) for text in specs]
        self.known: dict[str, Suite] = {suite.name: suite for suite in made}
        self._hashes: dict[str, str] = {}
        self._held: tuple[str, int, SuiteData] | None = None

    def hash(self, name: str) -> str:
        """The data's hash. Raises DataError where the data are missing here."""
        if name not in self._hashes:
            self._hashes[name] = self.known[name].data_hash()
        return self._hashes[name]

    def load(self, name: str, seed: int) -> SuiteData:
        """One data seed; the last one is kept."""
        if self._held is None or self._held[:2] != (name, seed):
            self._held = (name, seed, self.known[name].load(seed))
        return self._held[2]


def verify(path: Path, suites: Suites, *, progress: Callable[[str], None] = lambda _: None) -> Verified:
    """Everything that is wrong with the submission at `path`, and what its predictions score on our data.

    Time and memory are bounded by the limits in `faults`, whatever the files say. Nothing is written.
    """
    found = Verified()
    try:
        with Members(path) as members:
            manifest, found.faults = parse(read_manifest(members))
            if manifest is None:
                return found
            found.manifest = manifest
            found.faults += _files(manifest, members) or _seeds(manifest)
            if not found.faults:
                _cells(manifest, members, suites, found, progress)
    except Refused as error:
        found.faults.append(error.fault)
    return found


def arrays_of(cell: Claimed) -> list[Array]:
    """Every array that a cell names."""
    return [cell.ids, *(array for claim in cell.tracks.values() for array in claim.logits.values())]


def _files(manifest: Manifest, members: Members) -> list[Fault]:
    """Files that are not declared, declared files that are not there, and sizes that differ."""
    declared: dict[str, Array] = {}
    faults = []
    for array in (array for cell in manifest.cells for array in arrays_of(cell)):
        if declared.setdefault(array.file, array) != array:
            faults.append(Fault(array.file, "is declared twice with different sizes or hashes"))
    for name in sorted(members.sizes.keys() - declared.keys() - {MANIFEST})[:LISTED]:
        faults.append(Fault(name, "is not declared in the manifest", "leave it out"))
    for name, array in declared.items():
        if name not in members.sizes:
            faults.append(Fault(name, "is declared, but is not there"))
        elif members.sizes[name] != array.bytes:
            faults.append(Fault(name, f"has {members.sizes[name]:,} bytes, not the {array.bytes:,} declared"))
    return faults[:LISTED]


def _seeds(manifest: Manifest) -> list[Fault]:
    """Cells that are there twice, and rows with other seeds than the submission declares."""
    faults = []
    rows: dict[tuple[str, str, str], list[int]] = {}
    for cell in manifest.cells:
        rows.setdefault((cell.suite, cell.row, cell.model), []).append(cell.seed)
    if len(set(manifest.seeds)) != len(manifest.seeds):
        faults.append(Fault(MANIFEST, "declares a seed twice"))
    for (suite, row, _), seeds in rows.items():
        if len(set(seeds)) != len(seeds):
            faults.append(Fault(f"{suite} · {row}", "has a seed twice"))
        extra, lacking = set(seeds) - set(manifest.seeds), set(manifest.seeds) - set(seeds)
        if extra:
            faults.append(Fault(f"{suite} · {row}", f"has seeds that are not declared: {sorted(extra)[:10]}"))
        if lacking:
            what = f"lacks declared seeds: {sorted(lacking)[:10]}"
            faults.append(Fault(f"{suite} · {row}", what, "run them: a row shows all of its seeds or none"))
    if len({cell.id for cell in manifest.cells}) != len(manifest.cells):
        faults.append(Fault(MANIFEST, "has two cells of one id"))
    return faults[:LISTED]


def _cells(
    manifest: Manifest, members: Members, suites: Suites, found: Verified, progress: Callable[[str], None]
) -> None:
    order = sorted(range(len(manifest.cells)), key=lambda k: (manifest.cells[k].suite, manifest.cells[k].seed))
    for k in order:  # by suite and seed: each data seed is loaded once
        cell = manifest.cells[k]
        where = f"{cell.suite} · {cell.row} · seed {cell.seed}"
        progress(where)
        faults = _suite(cell, suites, where) or _supervision(cell, where)
        if not faults:
            try:
                faults = _score(k, cell, members, suites.load(cell.suite, cell.seed), found, where)
            except Refused as error:
                faults = [error.fault]
        found.faults += faults
        if len(found.faults) >= LISTED:
            found.faults.append(Fault(MANIFEST, f"checking stopped after {LISTED} faults", "mend these first"))
            return


def _suite(cell: Claimed, suites: Suites, where: str) -> list[Fault]:
    from harness.errors import DataError

    if cell.suite not in suites.known:
        known = ", ".join(suites.known) or "none"
        return [Fault(where, f"is on a suite that this board does not take; it takes: {known}", "leave it out")]
    version = suites.known[cell.suite].info.version
    if cell.suite_version != version:
        return [Fault(where, f"is on version {cell.suite_version} of the suite, not {version}", "run it again")]
    try:
        here = suites.hash(cell.suite)
    except DataError as error:
        return [Fault(where, f"cannot be checked here: {error}", "verify it where the data are")]
    if cell.data != here:
        return [Fault(where, f"has other data ({cell.data[:12]}) than this board ({here[:12]})", "check your data")]
    return []


def _supervision(cell: Claimed, where: str) -> list[Fault]:
    """What the ledger and the method's own metadata say was consumed must be declared."""
    from harness.errors import VabenchError
    from harness.registry import registry
    from harness.spec import parse_spec

    needed: set[str] = {"labels"}
    for track in cell.tracks.values():
        for key, amount in track.ledger.items():
            kind, _, split = key.partition("/")
            if amount > 0 and kind == "groups":
                needed.add("train_groups" if split == "train" else "val_groups")
            elif amount > 0 and kind in _LEDGER_FLAGS:
                needed.add(_LEDGER_FLAGS[kind])
    for kind, text in (("methods", cell.method), ("mask_sources", cell.mask_source)):
        try:
            spec = parse_spec(text) if text else None
        except VabenchError as error:
            return [Fault(where, f"'{text}' is no method or mask source as vabench writes them ({error})")]
        if spec is not None and spec.name in registry(kind).names():
            needed |= set(registry(kind).info(spec.name).supervision.names())
    faults = []
    for name, track in cell.tracks.items():
        lacking = sorted(needed - set(track.supervision))
        if lacking:
            what = f"consumed {', '.join(lacking)}, but does not declare it"
            faults.append(Fault(f"{where} · {name}", what, "declare all supervision"))
    return faults


def _score(k: int, cell: Claimed, members: Members, data: SuiteData, found: Verified, where: str) -> list[Fault]:
    from harness.metrics.score import score

    ids = _array(cell.ids, members, ("<i8",), 1)
    order = data.test[data.roles.headline].ids
    if len(ids) != len(order):
        return [Fault(where, f"tests {len(ids)} images, this data seed has {len(order)}")]
    if not np.array_equal(ids, order):
        twice = len(np.unique(ids)) != len(np.unique(order))
        what = "has test images twice" if twice else "tests other images, or in another order, than this data seed"
        return [Fault(where, what)]
    found.counts[k] = data.group_counts()
    faults = []
    for name, track in cell.tracks.items():
        logits, problems = _logits(track, members, data, f"{where} · {name}")
        if not problems:
            recomputed = score(logits, data)
            problems = _compare(track, recomputed, f"{where} · {name}")
            found.scores[k, name] = recomputed
        faults += problems
    return faults


def _logits(
    track: Claim, members: Members, data: SuiteData, where: str
) -> tuple[dict[str, npt.NDArray[np.float32]], list[Fault]]:
    lacking, extra = sorted(data.test.keys() - track.logits.keys()), sorted(track.logits.keys() - data.test.keys())
    if lacking or extra:
        said = [f"lacks predictions on {', '.join(lacking)}"] * bool(lacking)
        said += [f"has predictions on unknown renderings: {', '.join(extra[:5])}"] * bool(extra)
        return {}, [Fault(where, "; ".join(said))]
    held, faults = {}, []
    for name, array in track.logits.items():
        values = _array(array, members, _LOGITS, 2)
        wanted = (len(data.test[name]), len(data.class_names))
        if values.shape != wanted:
            faults.append(Fault(array.file, f"has shape {values.shape}, logits of '{name}' are {wanted}"))
        elif not np.isfinite(values).all():
            faults.append(Fault(array.file, "holds logits that are NaN or infinite"))
        elif np.abs(values).max() > 1e6:
            faults.append(Fault(array.file, "holds logits beyond a million"))
        else:
            held[name] = values.astype(np.float32)
    return held, faults


def _array(array: Array, members: Members, kinds: tuple[str, ...], dimensions: int) -> npt.NDArray[Any]:
    content = members.read(array.file)
    if hashlib.sha256(content).hexdigest() != array.sha256:
        raise refuse(array.file, "is not the file that the manifest declares (sha256)")
    return read_array(array.file, content, kinds, dimensions)


def _compare(track: Claim, recomputed: dict[str, Any], where: str) -> list[Fault]:
    """Reported numbers that the predictions contradict, and numbers that predictions give but nobody reported."""
    faults = []
    for name, ours in recomputed.items():
        if isinstance(ours, list | dict | str | bool):
            continue
        if name not in track.metrics:
            faults.append(Fault(where, f"does not report {name}"))
            continue
        theirs = track.metrics[name]
        same = ours is theirs or (
            ours is not None and theirs is not None and math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE)
        )
        if not same:
            what = f"reports {name} {_number(theirs)}, its predictions give {_number(ours)}"
            faults.append(Fault(where, what, "report what the predictions give"))
    return faults[:5]


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
