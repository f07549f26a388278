"""Fuzzing of every reader of outside files: `python tests/fuzz.py --seconds 1200` (with atheris: coverage-guided).

Each target reads bytes as the reader would find them in a file. It may raise the errors that the reader documents;
anything else is a fault, and is printed with the input that caused it. tests/test_fuzz.py runs a short, seeded one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import inspect
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from harness.config import load_config, validate
from harness.descriptions import read_descriptions
from harness.errors import VabenchError
from harness.lvlm.attempt import NoCompletion
from harness.lvlm.client import Query, Usage
from harness.lvlm.reading import read_answer
from harness.lvlm.shelf import Shelf, to_line
from harness.record import Record, Status
from harness.schema import read_record, seal
from harness.spec import parse_spec
from harness.store import Store
from harness.study import read_study
from harness.throughput.record import read_timing
from leaderboard.gallery import read_galleries
from leaderboard.published import read_published, write_published
from leaderboard.submissions.reading import Members, read_array, read_manifest
from methods.lvlm_va.audit import read_confirmation
from methods.lvlm_va.person import read_reviews
from suites.decode import read_image, read_mask
from suites.image_suite import read_manifest as read_suite_manifest
from suites.tables import Faults, read_table

LARGEST = 20_000  # bytes of an input
SCRATCH = Path(tempfile.gettempdir()) / "vabench-fuzz"


@dataclass(frozen=True)
class Target:
    """A reader, inputs to start from, and what it may raise."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = (VabenchError,)


def _file(content: bytes, name: str) -> Path:
    folder = SCRATCH / str(hashlib.sha256(name.encode()).hexdigest()[:8])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def _record() -> Record:
    return Record(
        id="ab" * 32, status=Status.DONE, suite="s", suite_source="synthetic", row="erm", method="erm",
        mask_source=None, block="baseline", model="mlp", seed=0, config={"a": [1, 2.5, None]}, identity={"data": "x"},
    )  # fmt: skip


def _npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _image(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (6, 5), 7).save(stream, kind)
    return stream.getvalue()


def _dicom() -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    held = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    held.Rows, held.Columns, held.SamplesPerPixel, held.BitsAllocated = 4, 4, 1, 8
    held.BitsStored, held.HighBit, held.PixelRepresentation = 8, 7, 0
    held.PhotometricInterpretation, held.PixelData = "MONOCHROME1", bytes(range(16))
    stream = io.BytesIO()
    held.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _predictions(content: bytes) -> object:
    store, record = Store(SCRATCH / "store"), _record()
    folder = SCRATCH / "store/cell"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.npz").write_bytes(content)
    fitting = record.model_copy(update={"predictions_sha256": hashlib.sha256(content).hexdigest()})
    return {name: array.sum() for name, array in store.predictions(folder, fitting).items()}


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{"test/a/0": np.arange(6, dtype=np.float32).reshape(3, 2)})
    return stream.getvalue()


def _submission(content: bytes) -> object:
    with Members(_file(content, "s.zip")) as members:
        values = read_manifest(members)
        return values, [members.read(name) for name in members.sizes]


def _submission_seed() -> bytes:
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", '{"format": "vabench-submission", "cells": [{"seed": 0}]}')
        archive.writestr("a/ids.npy", _npy(np.arange(4)))
    return stream.getvalue()


def _manifest(content: bytes) -> object:
    from leaderboard.submissions.manifest import parse

    _file(content, "manifest.json")
    with Members(_file(content, "manifest.json").parent) as members:
        return parse(read_manifest(members))


def _shelf(content: bytes) -> object:
    path = _file(content, "answers.jsonl")
    shelf = Shelf(path.parent).refresh()
    return shelf.damaged, shelf.get("k")


QUERY = Query(
    prompt="?", images=(), schema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)


def _published(content: bytes) -> object:
    return read_published(_file(content, "records.jsonl").parent)


def _board_seed() -> bytes:
    record = _record().model_copy(update={"config": {"recipe": {"optimizer": "adamw", "lr": 0.001, "steps": 300}}})
    folder = Path(tempfile.mkdtemp())
    write_published([record, record.model_copy(update={"seed": 1})], folder)
    return (folder / "records.jsonl").read_bytes()


def _gallery(content: bytes) -> object:
    path = _file(content, "g.json")
    (path.parent / "gallery").mkdir(exist_ok=True)
    path.replace(path.parent / "gallery/g.json")
    return read_galleries(path.parent)


def _config(content: bytes) -> object:
    return load_config(str(_file(content, "preset.yaml")))


def _values(content: bytes) -> object:
    return validate(json.loads(content), "fuzz")


def _spec(content: bytes) -> object:
    return str(parse_spec(content.decode()))


def _seed_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def targets() -> list[Target]:
    """All readers of files that come from outside: results of others, data sets, settings, answers, reviews."""
    looks = {"said": "1", "p": 0.5, "right": True, "attribution": "data:image/png;base64,AA==",
             "segments": "data:image/png;base64,AA=="}  # fmt: skip
    gallery = {"format": "vabench-gallery-1", "id": "a", "suite": "s", "row": "r", "seed": 0, "group": "g", "wrong": 1}
    gallery |= {"of": 2, "note": "", "verdicts": [], "failures": [{"id": 1, "label": "1", "before": looks,
                "after": looks, "picture": "data:image/png;base64,AA=="}]}  # fmt: skip
    review = {"format": "vabench review", "sets": [{"identity": "x", "images": [{"position": 0, "verdicts": {"0": 1},
              "changed": [0]}], "row": "lvlm_va@oracle", "consumed": {"lvlm_calls": 1}}]}  # fmt: skip
    audit = {"format": "vabench-audit-1", "identity": "x", "clusters": [{"cluster": 0, "answer": "accept"}]}
    suite = {
        "x": {"title": "t", "get": "g", "citation": "c", "mirrors": [], "parts": [{"files": "*.png", "licence": "CC0"}]}
    }
    usage = Usage(1, 2, 3, 0.5, 0, 0.0)
    answer = to_line({"key": "k", "text": "t", "usage": usage.as_dict(), "at": 1.0})
    head = to_line({"format": "vabench answers 1", "identity": {"model": "m"}})
    sealed = seal(_record()).model_dump_json().encode()
    first = _seed_json({**json.loads(sealed), "schema_version": 1})
    csv = b'image_id,label,patient\na.png,1,p1\n"b,c.png",0,p2\n'
    preset = b'suites: ["decoy_digits(rho=0.9)"]\nmethods: [erm, rrr@oracle, {row: rwg, label: x}]\nseeds: 2\n'
    preset += b"model: mlp\nrecipes: {base: {epochs: 1}, finetune: {steps: 2}}\n"
    study = b'name: s\nsummary: t\npreset: quickstart\naxes: {lam: [0.1, 1]}\nrows: [{row: "rrr(lam={lam})@oracle"}]\n'
    study += b"measure: [wga]\n"
    return [
        Target("record", read_record, (sealed, first), (ValueError,)),
        Target("predictions", _predictions, (_npz(),)),
        Target("published board", _published, (_board_seed(), sealed + b"\n" + sealed, b"\n\n"), ()),
        Target("submission archive", _submission, (_submission_seed(),)),
        Target("submission manifest", _manifest, (_seed_json({"format": "vabench-submission", "cells": []}),)),
        Target("submission array", lambda c: read_array("x", c, ("<f4", "<i8"), 1), (_npy(np.arange(5)),)),
        Target("gallery", _gallery, (_seed_json(gallery),), ()),
        Target("timing record", lambda c: read_timing(_file(c, "t.json")), (b'{"preset": "p", "rows": []}',)),
        Target("preset", _config, (preset,)),
        Target("settings", _values, (_seed_json({"suites": ["a"], "methods": ["erm"], "seeds": [0]}),),
               (VabenchError, ValueError, RecursionError)),
        Target("study", lambda c: read_study(str(_file(c, "study.yaml"))), (study,)),
        Target("spec", _spec, (b"rrr(lam=0.1,form=\"x\")", b"a(b=[1,2],c=d(e=f))"), (VabenchError, UnicodeDecodeError)),
        Target("recording", _shelf, (head + answer, answer + b"{"), ()),
        Target("answer", lambda c: read_answer(QUERY, c.decode("utf-8", "surrogateescape"), usage),
               (b'{"a": 1}', b'```json\n{"a": 2}\n```'), ()),
        Target("completion", _completion, (_seed_json({"choices": [{"message": {"content": '{"a": 1}'}}],
               "usage": {"prompt_tokens": 3}}),), (NoCompletion, ValueError, RecursionError)),
        Target("review", lambda c: read_reviews(_file(c, "r.json")), (_seed_json(review),)),
        Target("audit", lambda c: read_confirmation(_file(c, "a.json")), (_seed_json(audit),)),
        Target("descriptions", lambda c: read_descriptions(_file(c, "d.yaml"), ("a", "b")),
               (b"core: {a: x, b: y}\nspurious: {a: p, b: q}\n",)),
        Target("suite manifest", lambda c: read_suite_manifest(_file(c, "m.yaml"), "x"),
               (yaml.safe_dump(suite).encode(),)),
        Target("table", lambda c: read_table(_file(c, "t.csv"), ("image_id", "label"), Faults()), (csv,)),
        Target("image", lambda c: read_image(_file(c, "i.png")), (_image("RGB", "PNG"), _image("L", "JPEG"),
               _image("RGBA", "PNG"), _image("CMYK", "TIFF"), _image("I;16", "PNG"), _image("P", "BMP"))),
        Target("mask", lambda c: read_mask(_file(c, "m.png"), (6, 5)), (_image("1", "PNG"), _image("L", "PNG"))),
        Target("DICOM", lambda c: read_image(_file(c, "x.dcm"), "L"), (_dicom(),)),
    ]  # fmt: skip


def _completion(content: bytes) -> object:
    from harness.lvlm.attempt import Endpoint, read_completion

    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError
    endpoint = Endpoint("http://localhost/v1", "m", 1.0, 1, 0, 1.0, 0.1, (0.0, 0.0), {})
    return read_completion(endpoint, QUERY, values, 0.1)


# --- one input, many inputs -------------------------------------------------------------------------------------------


def check(target: Target, content: bytes) -> str:
    """'' where the reader took or refused the input as it says, else the traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.read(content)
        except target.allowed:
            return ""
        except Exception:
            return traceback.format_exc()
    return ""


TOKENS = (b"null", b"true", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'""', b"\xff\xfe", b"\0", b"9" * 400, b"[" * 2000)
TOKENS += (
    b"!!python/object",
    b"&a [*a]",
    b"${oc.env:HOME}",
    b"../",
    b"\xed\xa0\x80",
    b"\r",
    b"'",
    b'"',
    b"1_000",
    b"0x1f",
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to six changes: bits, bytes cut, doubled, moved or replaced by what readers trip over."""
    held = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(held) + 1)
        end = min(len(held), at + rng.choice((1, 1, 2, 4, 16, 64)))
        kind = rng.randrange(7)
        if kind == 0 and held:
            held[min(at, len(held) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del held[at:end]
        elif kind == 2:
            held[at:at] = held[at:end]
        elif kind == 3:
            held[at:end] = rng.choice(TOKENS)
        elif kind == 4:
            held[at:at] = rng.choice(TOKENS)
        elif kind == 5:
            held[at:end] = rng.randbytes(end - at)
        else:
            del held[at:]
    return bytes(held[:LARGEST])


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Endless mutations of the seeds, and of what was made of them."""
    rng, pool = random.Random(f"{target.name} {seed}"), list(target.seeds)
    yield from pool
    while True:
        made = mutate(rng.choice(pool), rng)
        if rng.random() < 0.05:
            pool = [*target.seeds, *pool[len(target.seeds) :][-50:], made]
        yield made


def plain(target: Target, seconds: float) -> tuple[int, dict[str, bytes]]:
    """Fuzz one reader without atheris; returns inputs tried, and faults by their last line."""
    tried, faults, end = 0, dict[str, bytes](), time.monotonic() + seconds
    for content in inputs(target, 0):
        if time.monotonic() > end:
            break
        tried += 1
        found = check(target, content)
        if found:
            lines = found.splitlines()
            ours = [line.strip() for line in lines if line.strip().startswith("File") and "site-packages" not in line]
            kind = next(line for line in reversed(lines) if line[:1].isalpha()).partition(":")[0]
            place = [line for line in ours if "/tests/" not in line and "frozen" not in line]
            faults.setdefault(f"{kind} at {(place or ours)[-1]}", content)
    return tried, faults


def _ours() -> Iterator[Any]:
    """Functions and methods of our packages that are imported by now."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("harness", "methods", "suites", "leaderboard", "baselines"):
            continue
        for value in list(vars(module).values()):
            held = list(vars(value).values()) if isinstance(value, type) and value.__module__ == name else [value]
            yield from (f for f in held if inspect.isfunction(f) and f.__module__ == name)


def guided(target: Target, seconds: float) -> None:
    """Fuzz one reader with atheris, in a process of its own; libFuzzer ends it at the first fault."""
    import atheris

    def one(content: bytes) -> None:
        found = check(target, content[:LARGEST])
        if found:
            print(found, repr(content[:2000]), file=sys.stderr)
            raise RuntimeError(target.name)

    with tempfile.TemporaryDirectory() as corpus:
        for k, content in enumerate(target.seeds):
            (Path(corpus) / str(k)).write_bytes(content)
        for function in _ours():
            atheris.instrument_func(function)  # all of what is imported (torch!) would take minutes
        atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-print_final_stats=1", corpus], one)
        atheris.Fuzz()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=60, help="in all, shared by the targets")
    words.add_argument("--only", default="")
    words.add_argument("--guided", default="", help=argparse.SUPPRESS)
    given = words.parse_args()
    held = [target for target in targets() if given.only in target.name]
    if given.guided:
        guided(next(target for target in held if target.name == given.guided), given.seconds)
        return
    with contextlib.suppress(ImportError):
        import atheris  # noqa: F401

        print("coverage-guided, with atheris")
    total, bad, share = 0, 0, given.seconds / len(held)
    counts: collections.Counter[str] = collections.Counter()
    for target in held:
        tried, faults = plain(target, share / 2 if "atheris" in sys.modules else share)
        if "atheris" in sys.modules:
            command = [sys.executable, __file__, "--guided", target.name, "--seconds", str(share / 2)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            executed = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
            tried += int(executed[-1].rpartition(":")[2]) if executed else 0
            if done.returncode:
                faults[f"atheris: {done.stderr[-3000:]}"] = b""
        counts[target.name] = tried
        total, bad = total + tried, bad + len(faults)
        print(f"{target.name:22} {tried:9,} inputs, {len(faults)} faults", flush=True)
        for what, content in faults.items():
            print(f"    {what}\n    {content[:300]!r}", flush=True)
    print(f"{'all':22} {total:9,} inputs, {bad} faults")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
