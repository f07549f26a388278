"""Submissions: honest ones come through with their numbers, spoiled ones are refused with the reason, in bounds."""

import itertools
import json
import os
import random
import resource
import stat
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from submission_toys import (
    SUITE,
    Files,
    array_name,
    as_zip,
    header,
    manifest,
    npy,
    replaced,
    subset,
    track,
    with_manifest,
)
from typer.testing import CliRunner

from harness.cli import _collect, app
from harness.errors import ConfigError, DataError
from leaderboard.collect import everything
from leaderboard.published import read_published
from leaderboard.submissions import faults
from leaderboard.submissions.board import init_board
from leaderboard.submissions.merge import confirm, merge
from leaderboard.submissions.pack import pack
from leaderboard.submissions.verify import Suites, verify
from leaderboard.tables import boards

EVIL = "<script>alert(1)</script>"


def said(path: Path, suites: Suites) -> str:
    found = verify(path, suites)
    assert not found.accepted
    assert found.faults
    return "\n".join(map(str, found.faults))


# --- honest -----------------------------------------------------------------------------------------------------------


def test_an_honest_one_is_recomputed_to_the_reported_numbers(honest: Files, suites: Suites, tmp_path: Path) -> None:
    found = verify(as_zip(honest, tmp_path / "s.zip"), suites)
    assert not found.faults
    assert len(found.scores) == 6
    for (k, name), scores in found.scores.items():
        reported = track(manifest(honest), k)["metrics"]
        assert name == "preregistered"
        assert scores["wga"] == pytest.approx(reported["wga"], abs=1e-9)
        assert "mu_lift" not in scores  # no prediction determines it


def test_merged_rows_have_the_numbers_of_their_records(
    honest: Files, results: Path, suites: Suites, tmp_path: Path
) -> None:
    found = verify(as_zip(honest, tmp_path / "s.zip"), suites)
    assert merge(found, suites, tmp_path / "board") == (6, 0)
    assert merge(found, suites, tmp_path / "board") == (0, 6)
    there = boards(everything(tmp_path / "board").entries)[0]
    here = boards(everything(results).entries)[0]
    ours = here.frame.set_index("row")
    for _, line in there.frame.iterrows():
        name = line["row"].removesuffix(" [lab]")
        assert line["row"] == f"{name} [lab]"
        for column in ("wga", "aga", "delta", "flip_effect", "mu_lift", "cost_s", "n_worst"):
            assert line[column] == pytest.approx(ours.loc[name, column], nan_ok=True)
    assert any("were submitted" in note and "no cell was confirmed" in note for note in there.notes)


def test_a_rerun_stands_beside_as_external(honest: Files, results: Path, suites: Suites, tmp_path: Path) -> None:
    merge(verify(as_zip(honest, tmp_path / "s.zip"), suites), suites, tmp_path / "board")
    records = [entry.record for entry in everything(results).entries]
    assert confirm(tmp_path / "board", records) == 6
    held = read_published(tmp_path / "board")[0][0]
    checked = held.audit["submission"]["preregistered"]
    assert "wga" in checked["recomputed"]
    assert {"mu_lift", "cost_s"} <= set(checked["reported"])
    assert checked["external"]["mu_lift"] == pytest.approx(held.tracks["preregistered"].metrics["mu_lift"])
    with pytest.raises(DataError, match="rerun"):
        confirm(tmp_path / "board", [records[0].model_copy(update={"id": "0" * 64})])


def test_ten_different_honest_submissions_share_a_board(honest: Files, suites: Suites, tmp_path: Path) -> None:
    methods = sorted({cell["method"] for cell in manifest(honest)["cells"]})
    chosen = [(rows, (0, 1)) for n in (1, 2, 3) for rows in itertools.combinations(methods, n)]
    chosen += [((method,), (k % 2,)) for k, method in enumerate(methods)]
    assert len(chosen) == 10
    for k, (rows, seeds) in enumerate(chosen):
        files = subset(honest, lambda cell, r=rows, s=seeds: cell["method"] in r and cell["seed"] in s, f"lab-{k}")
        found = verify(as_zip(files, tmp_path / f"{k}.zip"), suites)
        assert found.accepted, found.faults
        assert merge(found, suites, tmp_path / "board") == (len(rows) * len(seeds), 0)
    frame = boards(everything(tmp_path / "board").entries)[0].frame
    assert len(frame) == sum(len(rows) for rows, _ in chosen)
    whole = frame[frame["record_seeds"].map(len) == 2]
    assert whole.groupby("method")["wga"].nunique().eq(1).all()


def test_two_merges_at_once_lose_nothing(honest: Files, tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    code = (
        "import sys; from pathlib import Path; from leaderboard.submissions.merge import merge\n"
        "from leaderboard.submissions.verify import Suites, verify\n"
        "suites = Suites([sys.argv[1]]); found = verify(Path(sys.argv[2]), suites)\n"
        "print(flush=True); input(); merge(found, suites, Path(sys.argv[3]))"
    )
    runs = []
    for k in range(3):
        path = as_zip(with_manifest(honest, lambda values, n=f"lab-{k}": values.update(name=n)), tmp_path / f"{k}.zip")
        words = [sys.executable, "-c", code, SUITE, str(path), str(tmp_path / "board")]
        runs.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for run in runs:  # all have verified: now they merge at the same moment
        assert run.stdout is not None
        run.stdout.readline()
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    assert len(read_published(tmp_path / "board")[0]) == 18


def test_an_id_that_belongs_to_another_cell_is_not_confirmed(
    honest: Files, results: Path, suites: Suites, tmp_path: Path
) -> None:
    merge(verify(as_zip(honest, tmp_path / "s.zip"), suites), suites, tmp_path / "board")
    records = [entry.record for entry in everything(results).entries]
    other = next(record for record in records if record.method != records[0].method)
    with pytest.raises(DataError, match="belongs to another cell: method"):
        confirm(tmp_path / "board", [other.model_copy(update={"id": records[0].id, "seed": records[0].seed})])


def test_other_numbers_under_a_known_name_change_nothing(honest: Files, suites: Suites, tmp_path: Path) -> None:
    merge(verify(as_zip(honest, tmp_path / "s.zip"), suites), suites, tmp_path / "board")
    before = (tmp_path / "board/records.jsonl").read_bytes()
    other = with_manifest(honest, lambda v: track(v)["metrics"].update(mu_lift=0.0))
    with pytest.raises(DataError, match="nothing was merged"):
        merge(verify(as_zip(other, tmp_path / "o.zip"), suites), suites, tmp_path / "board")
    assert (tmp_path / "board/records.jsonl").read_bytes() == before


def test_pack_says_what_it_cannot_pack(results: Path, tmp_path: Path) -> None:
    entries = everything(results).entries
    with pytest.raises(ConfigError, match="cannot be submitted"):
        pack(entries, EVIL, tmp_path / "x.zip")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    with pytest.raises(ConfigError, match="exists already"):
        pack(entries, "lab", tmp_path / "there")
    with pytest.raises(DataError, match="nothing to submit"):
        pack([], "lab", tmp_path / "x.zip")


def test_the_verbs(results: Path, tmp_path: Path) -> None:
    _collect()
    zipped, board = str(tmp_path / "lab.zip"), str(tmp_path / "board")

    def call(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["submit", *words])
        assert done.exit_code == code, done.output
        return done.output

    assert "6 cells, 2 seeds" in call("pack", f"results={results}", "--all", "--name", "lab", "-o", zipped)
    assert "accepted" in call("verify", zipped, "--suite", SUITE)
    assert "6 cells added" in call("merge", zipped, "--board", board, "--suite", SUITE)
    assert "6 results confirmed" in call("confirm", f"results={results}", "--all", "--board", board)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    assert "refused" in call("verify", str(tmp_path / "bad.zip"), "--suite", SUITE, code=1)
    made = call("init-board", str(tmp_path / "repo")).split()
    assert len(made) == 5
    with pytest.raises(ConfigError, match="exists already"):
        init_board(tmp_path / "repo")
    flow = (tmp_path / "repo/.github/workflows/verify.yml").read_text()
    assert "contents: read" in flow
    assert f'pip install "vabench=={version("vabench")}"' in flow
    deploy = (tmp_path / "repo/.github/workflows/publish.yml").read_text()
    build, publish = deploy.split("  deploy:")
    assert "pip install" in build
    assert "write" not in build.split("permissions:")[1]
    assert "run:" not in publish  # the job that may publish runs nobody's code
    assert "pull_request_target" not in flow  # it would hand secrets to a stranger's files
    assert "${{ github.event.pull_request.title" not in flow


# --- spoiled: the manifest --------------------------------------------------------------------------------------------

MANIFESTS: dict[str, tuple[Any, str]] = {
    "script in a method's name": (lambda v: v["cells"][0].update(method=EVIL), "cells.0.method"),
    "script in a label": (lambda v: v["cells"][0].update(label=EVIL), "cells.0.label"),
    "script in the submission's name": (lambda v: v.update(name=EVIL), "name"),
    "path as the submission's name": (lambda v: v.update(name="../../etc"), "name"),
    "text that turns around": (lambda v: v["cells"][0].update(row="erm\u202egpj"), "cells.0.row"),
    "line break in a row": (lambda v: v["cells"][0].update(row="erm\nfake"), "cells.0.row"),
    "endless label": (lambda v: v["cells"][0].update(label="a" * 100_000), "cells.0.label"),
    "unknown key": (lambda v: v.update(hook="x"), "hook"),
    "missing key": (lambda v: v.pop("seeds"), "seeds"),
    "number as text": (lambda v: v["cells"][0].update(seed="0"), "seed"),
    "negative seed": (lambda v: v["cells"][0].update(seed=-1), "seed"),
    "another format": (lambda v: v.update(format="zip"), "format"),
    "a later version": (lambda v: v.update(version=2), "version"),
    "no cells": (lambda v: v.update(cells=[]), "cells"),
    "unknown block": (lambda v: v["cells"][0].update(block="winner"), "block"),
    "unknown supervision": (lambda v: track(v).update(supervision=["labels", "magic"]), "supervision"),
    "unknown track": (lambda v: v["cells"][0]["tracks"].update(best=track(v)), "tracks"),
    "negative cost": (lambda v: track(v).update(cost_s=-1.0), "cost_s"),
    "metric as text": (lambda v: track(v)["metrics"].update(wga="1e999"), "metrics"),
    "candidate that was not tried": (lambda v: track(v).update(candidate=7, tried=7), "none of the 7 tried"),
    "a million candidates": (lambda v: track(v).update(candidate=5_000, tried=10_000), "candidate"),
    "script in the config": (lambda v: v["cells"][0]["config"].update(note=EVIL), "config"),
    "script in the hardware": (lambda v: v["hardware"].update(gpu=EVIL), "hardware"),
    "path out of the folder": (lambda v: v["cells"][0]["ids"].update(file="../ids.npy"), "../ids.npy"),
    "absolute path": (lambda v: v["cells"][0]["ids"].update(file="/etc/passwd.npy"), "/etc/passwd.npy"),
    "no such array": (lambda v: v["cells"][0]["ids"].update(file="gone.npy"), "is not there"),
    "wrong checksum": (lambda v: v["cells"][0]["ids"].update(sha256="0" * 64), "sha256"),
    "wrong size": (lambda v: v["cells"][0]["ids"].update(bytes=7), "not the 7 declared"),
    "more seeds than declared": (lambda v: v.update(seeds=[0]), "not declared: [1]"),
    "fewer seeds than declared": (lambda v: v.update(seeds=[0, 1, 2]), "lacks declared seeds: [2]"),
    "a seed declared twice": (lambda v: v.update(seeds=[0, 1, 1]), "declares a seed twice"),
    "a cell twice": (lambda v: v["cells"].append(v["cells"][0]), "seed twice"),
    "two cells of one id": (lambda v: v["cells"][0].update(id=v["cells"][1]["id"]), "two cells of one id"),
    "a suite that is not taken": (lambda v: [cell.update(suite="easy") for cell in v["cells"]], "does not take"),
    "another suite's data": (lambda v: v["cells"][0].update(data="1" * 64), "other data"),
    "an old suite": (lambda v: v["cells"][0].update(suite_version="0"), "version 0 of the suite"),
    "inflated WGA": (lambda v: track(v)["metrics"].update(wga=0.99), "reports wga 0.99"),
    "WGA left out": (lambda v: track(v)["metrics"].pop("wga"), "does not report wga"),
    "masks not declared": (lambda v: track(v).update(supervision=["labels"]), "consumed"),
    "nothing declared": (lambda v: track(v).update(supervision=[]), "does not declare"),
    "a rendering left out": (lambda v: track(v)["logits"].popitem(), "not declared in the manifest"),
    "method that is no spec": (lambda v: v["cells"][0].update(method="erm((("), "no method or mask source"),
}


def _masked(values: dict[str, Any]) -> dict[str, Any]:
    """The rows with masks first, so that what is undeclared is a mask."""
    values["cells"].sort(key=lambda cell: cell["mask_source"] is None)
    return values


@pytest.mark.parametrize("what", MANIFESTS)
def test_spoiled_manifests(what: str, honest: Files, suites: Suites, tmp_path: Path) -> None:
    change, reason = MANIFESTS[what]
    spoiled = with_manifest(honest, lambda values: change(_masked(values)))
    text = said(as_zip(spoiled, tmp_path / "s.zip"), suites)
    assert reason in text
    assert EVIL not in text


RAW: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "no JSON"),
    "a list": (b"[]", "JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "infinity": (b'{"a": -Infinity}', "Infinity"),
    "a key twice": (b'{"name": "a", "name": "b"}', "twice"),
    "deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    "a number with ten thousand digits": (b'{"a": ' + b"9" * 10_000 + b"}", "no JSON"),
    "empty": (b"", "no JSON"),
    "large": (b'{"a": "' + b"x" * (faults.MAX_MANIFEST + 1) + b'"}', "more than"),
}


def test_a_number_that_overflows(honest: Files, suites: Suites, tmp_path: Path) -> None:
    spoiled = with_manifest(honest, lambda v: (track(v)["metrics"].update(wga=0.125), v["hardware"].update(cores=0.5)))
    for number in (b"0.125", b"0.5"):
        text = spoiled["manifest.json"]
        assert number in text
        over = {**spoiled, "manifest.json": text.replace(number, b"1e999", 1)}
        assert "finite" in said(as_zip(over, tmp_path / "s.zip"), suites)


def test_a_hundred_thousand_keys_are_read_in_linear_time(honest: Files, suites: Suites, tmp_path: Path) -> None:
    keys = ",".join(f'"k{k}":0' for k in range(200_000))
    start = time.process_time()
    assert "twice" in said(
        as_zip({**honest, "manifest.json": f'{{{keys},"k199999":0}}'.encode()}, tmp_path / "s"), suites
    )
    assert time.process_time() - start < 10


@pytest.mark.parametrize("what", RAW)
def test_manifests_that_are_none(what: str, honest: Files, suites: Suites, tmp_path: Path) -> None:
    content, reason = RAW[what]
    root = tmp_path / "s"
    root.mkdir()
    (root / "manifest.json").write_bytes(content)
    assert reason in said(root, suites)


# --- spoiled: arrays --------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/unpickled-by-vabench",)


def _set(value: float) -> Any:
    def change(array: Any) -> Any:
        array[3, 1] = value
        return array

    return change


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
ARRAYS: dict[str, tuple[str, Any, str]] = {
    "Python objects": ("logits", lambda _: np.array([Bomb(), None], dtype=object), "unpickled"),
    "a pickle": ("logits", b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.", "no .npy header"),
    "fields": ("logits", lambda a: np.zeros(len(a), dtype=[("a", "<f4"), ("b", "<f4")]), "dtype"),
    "objects in fields": ("logits", lambda a: np.zeros(2, dtype=[("a", "O")]), "unpickled"),
    "NaN": ("logits", _set(np.nan), "NaN or infinite"),
    "infinity": ("logits", _set(np.inf), "NaN or infinite"),
    "huge logits": ("logits", _set(1e30), "beyond a million"),
    "integers": ("logits", lambda a: a.astype("<i8"), "dtype"),
    "big endian": ("logits", lambda a: a.astype(">f4"), "dtype"),
    "half precision": ("logits", lambda a: a.astype("<f2"), "dtype"),
    "Fortran order": ("logits", np.asfortranarray, "Fortran"),
    "too few rows": ("logits", lambda a: a[:-1], "shape"),
    "too few classes": ("logits", lambda a: a[:, :-1], "shape"),
    "one dimension": ("logits", lambda a: a[:, 0], "positive numbers"),
    "huge shape": ("logits", header(SHAPE % "(4000000000, 4000000000)"), "declares shape"),
    "negative shape": ("logits", header(SHAPE % "(-120, 10)", b"\0" * 4800), "positive numbers"),
    "empty shape": ("logits", header(SHAPE % "(0, 10)"), "positive numbers"),
    "code in the header": ("logits", header("__import__('os').system('true')"), "no .npy header"),
    "deep header": ("logits", header("(" * 5000), "no .npy header"),
    "trailing bytes": ("logits", header(SHAPE % "(1, 10)", b"\0" * 44), "declares shape"),
    "another version": ("logits", b"\x93NUMPY\x09\x00" + b"\0" * 80, "no .npy header"),
    "an image twice": ("ids", lambda a: np.concatenate([a[:-1], a[:1]]), "twice"),
    "another order": ("ids", lambda a: a[::-1].copy(), "another order"),
    "other images": ("ids", lambda a: a + 10_000, "other images"),
    "fewer images": ("ids", lambda a: a[:50], "tests 50 images"),
    "ids as floats": ("ids", lambda a: a.astype("<f4"), "dtype"),
    "another model's logits": ("logits", lambda a: a[:, ::-1].copy(), "its predictions give"),
    "rows in another order": ("logits", lambda a: a[::-1].copy(), "its predictions give"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_spoiled_arrays(what: str, honest: Files, suites: Suites, tmp_path: Path) -> None:
    which, content, reason = ARRAYS[what]
    assert reason in said(as_zip(replaced(honest, content, which), tmp_path / "s.zip"), suites)
    assert not Path("/tmp/unpickled-by-vabench").exists()


# --- spoiled: the archive ---------------------------------------------------------------------------------------------


def _link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link.npy")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


ARCHIVES: dict[str, tuple[Any, str]] = {
    "member outside": (lambda z: z.writestr("../evil.npy", b"x"), "points outside"),
    "absolute member": (lambda z: z.writestr("/evil.npy", b"x"), "points outside"),
    "backslash": (lambda z: z.writestr("a\\..\\evil.npy", b"x"), "no name for a member"),
    "drive letter": (lambda z: z.writestr("C:evil.npy", b"x"), "no name for a member"),
    "control character": (lambda z: z.writestr("a\x1b[2Jb.npy", b"x"), "no name for a member"),
    "capitals": (lambda z: z.writestr("Manifest.JSON", b"{}"), "there twice"),
    "a folder": (lambda z: z.writestr("folder/", b""), ["points outside", " or names a folder"][0]),
    "undeclared member": (lambda z: z.writestr("extra.npy", npy(np.zeros(3))), "not declared"),
    "zip in the zip": (lambda z: z.writestr("inner.zip", b"PK"), "not declared"),
    "zip bomb": (lambda z: z.writestr("bomb.npy", bytes(60 * 2**20)), "zip bomb"),
    "link": (_link, "no regular file"),
    "large member": (lambda z: z.writestr("big.npy", bytes(faults.MAX_ARRAY + 1)), "would unpack to"),
}


@pytest.mark.parametrize("what", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_spoiled_archives(what: str, honest: Files, suites: Suites, tmp_path: Path) -> None:
    edit, reason = ARCHIVES[what]
    assert reason in said(as_zip(honest, tmp_path / "s.zip", edit), suites)


def test_archives_that_are_damaged(honest: Files, suites: Suites, tmp_path: Path) -> None:
    whole = as_zip(honest, tmp_path / "s.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    assert "no zip file" in said(tmp_path / "short.zip", suites)
    name = array_name(honest).encode()
    start = whole.index(name) + len(name)
    (tmp_path / "bits.zip").write_bytes(whole[: start + 20] + bytes(8) + whole[start + 28 :])
    assert "cannot be read" in said(tmp_path / "bits.zip", suites)
    with zipfile.ZipFile(tmp_path / "stored.zip", "w", zipfile.ZIP_STORED) as archive:
        for member, content in honest.items():
            archive.writestr(member, content)
    stored = bytearray((tmp_path / "stored.zip").read_bytes())
    stored[stored.index(honest[name.decode()]) + 200] ^= 1  # a bit of an array: only the checksum can tell
    (tmp_path / "stored.zip").write_bytes(bytes(stored))
    assert "CRC" in said(tmp_path / "stored.zip", suites)
    assert "no manifest" in said(as_zip({"a.npy": b"x"}, tmp_path / "none.zip"), suites)
    assert "neither a folder nor a zip" in said(tmp_path / "gone.zip", suites)


def test_folders_with_links_and_devices(honest: Files, suites: Suites, tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name, content in honest.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert verify(root, suites).accepted
    (root / "link.npy").symlink_to("/etc/passwd")
    assert "no regular file" in said(root, suites)
    (root / "link.npy").unlink()
    (root / "loop").symlink_to(root)
    assert "no regular file" in said(root, suites)
    (root / "loop").unlink()
    os.mkfifo(root / "pipe.npy")  # reading it would wait for ever
    assert "no regular file" in said(root, suites)
    (tmp_path / "other").symlink_to(root)
    assert "symbolic link" in said(tmp_path / "other", suites)


def test_many_members_are_refused_before_they_are_read(honest: Files, suites: Suites, tmp_path: Path) -> None:
    files = {**honest, **{f"x{k}.npy": b"" for k in range(faults.MAX_FILES)}}
    start = time.perf_counter()
    assert "members, more than" in said(as_zip(files, tmp_path / "s.zip"), suites)
    assert time.perf_counter() - start < 30


def test_spoiled_bytes_anywhere_are_refused_and_never_crash(honest: Files, suites: Suites, tmp_path: Path) -> None:
    whole, rng = as_zip(honest, tmp_path / "s.zip").read_bytes(), random.Random(0)
    for _ in range(60):
        spoiled = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        (tmp_path / "b.zip").write_bytes(bytes(spoiled))
        found = verify(tmp_path / "b.zip", suites)
        assert found.faults or found.scores  # a flipped bit in a date changes nothing


def test_memory_stays_bounded(honest: Files, tmp_path: Path) -> None:
    """A process with 1.5 GB refuses the largest lies; unpacking any of them would end it."""
    for k, content in enumerate((header(SHAPE % "(300000000, 10)", bytes(100)), bytes(faults.MAX_ARRAY))):
        as_zip(replaced(honest, content), tmp_path / f"{k}.zip")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)\n"
        "from pathlib import Path; from leaderboard.submissions.verify import Suites, verify\n"
        "suites = Suites([sys.argv[1]])\n"
        "for path in sys.argv[2:]:\n"
        "    found = verify(Path(path), suites); assert found.faults, path; print(found.faults[0])"
    )
    paths = [str(tmp_path / f"{k}.zip") for k in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", code, SUITE, *paths], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2
    assert "torch" not in done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_at_least_fifty_ways_to_spoil_one() -> None:
    assert len(MANIFESTS) + len(RAW) + len(ARRAYS) + len(ARCHIVES) >= 50
    assert json.loads(json.dumps(list(ARRAYS))) == list(ARRAYS)
