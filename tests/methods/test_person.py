"""Verdicts from a person's file: what they mark, what they cost, and which files are refused with which sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_toys import toy_alignment, toy_context, toy_task

from harness.errors import ConfigError, DataError, NotApplicable, VabenchError
from harness.masks import AlignmentSet, MaskSet
from harness.registry import registry
from harness.spec import parse_spec
from harness.supervision import Supervision, Task
from methods.lvlm_va.person import FORMAT, Person, alignment_identity, read_reviews

IMAGES = 6  # the first has no segment, the others have segments 0, 1 and 2; segment 3 is empty everywhere


def alignment_of(supervision: Supervision) -> tuple[AlignmentSet, Task]:
    alignment, _ = toy_alignment(IMAGES, blank=1)
    task = toy_task(supervision=supervision)
    alignment.split = task.train
    return alignment, task


def review(row: str = "lvlm_va@oracle") -> dict[str, Any]:
    """Image 1: one agreed, one overruled, one left. Image 2: one added, the rest left without a verdict. 3: left."""
    images = [
        {
            "position": 1,
            "verdicts": {"0": 1, "1": 1, "2": 0},
            "base": {"0": 1, "1": 0, "2": 0},
            "agreed": [0],
            "overruled": [1],
            "added": [],
            "reviewed": False,
        },
        {"position": 2, "verdicts": {"2": 1}, "base": {}, "agreed": [], "overruled": [], "added": [2]},
        {"position": 3, "verdicts": {"0": 1, "1": 0}, "base": {"0": 1, "1": 0}, "agreed": [], "overruled": []},
    ]
    consumed = {"masks/train": IMAGES, "labels/train": 99, "sentences/core": 3, "lvlm_calls/train": 7}
    identity = alignment_identity(alignment_of(Supervision.LABELS)[0])
    return {"format": FORMAT, "sets": [{"identity": identity, "row": row, "consumed": consumed, "images": images}]}


def save(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def ask(file: str, **params: Any) -> tuple[MaskSet, Task, dict[str, Any], AlignmentSet]:
    source = Person(file, **params)
    alignment, task = alignment_of(source.supervision | Supervision.LABELS)
    context = toy_context()
    return source.masks(alignment, task, context), task, context.notes["person"]["train"], alignment


def verdict_rows(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[-1] * 4, *rows, *[[-1] * 4] * (IMAGES - 1 - len(rows))], dtype=torch.int8)


def test_verdicts_mark_their_segments(tmp_path: Path) -> None:
    given, task, facts, alignment = ask(save(tmp_path / "a.json", review()))
    expected = verdict_rows([1, 1, 0, -1], [-1, -1, 1, -1], [1, 0, -1, -1])
    assert given.verdicts is not None
    assert torch.equal(given.verdicts, expected)
    labels = alignment.segments.labels
    for position in range(IMAGES):
        spurious = (expected[position] == 1).nonzero().flatten()
        assert torch.equal(given.masks[position], torch.isin(labels[position].long(), spurious))
    assert given.masks.flatten(1).any(1).tolist() == [False, True, True, True, False, False]
    assert facts == {"verdicts": 3, "overruled": 1, "unreviewed": 3, "of": "lvlm_va@oracle"}
    counts = task.ledger.as_dict()
    assert counts.pop("labels/train", 0) in (0, IMAGES)  # the reviewed run's 99 labels are not charged again
    assert counts == {
        "person_verdicts/train": 3,
        "unreviewed_verdicts/train": 3,
        "masks/train": IMAGES,
        "sentences/core": 3,
        "lvlm_calls/train": 7,
    }


def test_only_reviewed_drops_what_nobody_decided(tmp_path: Path) -> None:
    given, task, facts, _ = ask(save(tmp_path / "a.json", review()), only_reviewed=True)
    assert given.verdicts is not None
    assert torch.equal(given.verdicts, verdict_rows([1, 1, -1, -1], [-1, -1, 1, -1]))
    assert not given.masks[3].any()
    assert facts == {"verdicts": 3, "overruled": 1, "unreviewed": 0, "of": "lvlm_va@oracle"}
    assert task.ledger.as_dict()["person_verdicts/train"] == 3
    assert "unreviewed_verdicts/train" not in task.ledger.as_dict()


def test_a_file_written_by_hand_is_decided_throughout(tmp_path: Path) -> None:
    content = review()
    content["sets"][0] = {
        "identity": content["sets"][0]["identity"],
        "images": [{"position": 1, "verdicts": {"0": 1, "2": 0}}, {"position": 0, "verdicts": {"0": 1}}],
    }
    given, task, facts, _ = ask(save(tmp_path / "a.json", content), only_reviewed=True)
    assert given.verdicts is not None
    assert torch.equal(given.verdicts, verdict_rows([1, -1, 0, -1]))  # image 0 has no segment that could be spurious
    assert facts == {"verdicts": 2, "overruled": 0, "unreviewed": 0, "of": ""}
    assert Person(str(tmp_path / "a.json")).supervision == Supervision.LABELS | Supervision.PERSON
    assert task.ledger.as_dict().get("masks/train", 0) == 0


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ("lvlm_va@oracle", Supervision.MASKS),
        ("lvlm_va@random_verdicts(of=noisy_oracle(fpr=0.1,fnr=0))", Supervision.MASKS),
        ("lvlm_va@distilled(of=permuted(of=embedded))", Supervision.TEXT | Supervision.LVLM),
        ("erm", Supervision.NONE),
    ],
)
def test_a_review_declares_what_the_reviewed_source_reads(tmp_path: Path, row: str, more: Supervision) -> None:
    declared = Person(save(tmp_path / "a.json", review(row))).supervision
    assert declared == Supervision.LABELS | Supervision.PERSON | more


def test_several_sets_in_one_file(tmp_path: Path) -> None:
    content = review()
    content["sets"].insert(0, {"identity": "of another seed", "images": []})
    given, *_ = ask(save(tmp_path / "a.json", content))
    assert not given.empty()
    assert set(read_reviews(tmp_path / "a.json")) == {"of another seed", content["sets"][1]["identity"]}


Change = Callable[[dict[str, Any]], Any]


def edit(change: str, value: Any) -> Change:
    """Put a value at a place such as `sets/0/images/0/position`."""

    def changed(content: dict[str, Any]) -> dict[str, Any]:
        *keys, last = [int(key) if key.isdigit() else key for key in change.split("/")]
        inner: Any = content
        for key in keys:
            inner = inner[key]
        if isinstance(inner, dict):
            inner[str(last)] = value
        else:
            inner[last] = value
        return content

    return changed


def twice(*path: Any) -> Change:
    def changed(content: dict[str, Any]) -> dict[str, Any]:
        inner: Any = content
        for key in path:
            inner = inner[key]
        inner.append(copy.deepcopy(inner[0]))
        return content

    return changed


FORM = "an image needs its position and verdicts, segment number -> 0 or 1"
FIRST = "sets/0/images/0"
FAULTS: list[tuple[str, Change, str]] = [
    ("no JSON", lambda _: "{", "is not JSON: Expecting property name"),
    ("empty", lambda _: "", "is not JSON"),
    ("too deep", lambda _: "[" * 100_000, "is not JSON"),
    ("a list", lambda _: [], "is not a file that the review page saved"),
    ("another format", edit("format", "vabench-audit-1"), "is not a file that the review page saved"),
    ("no sets", edit("sets", {}), "is not a file that the review page saved"),
    ("a set without identity", edit("sets/0/identity", None), "every set needs an identity and a list of images"),
    ("a number as identity", edit("sets/0/identity", 7), "every set needs an identity and a list of images"),
    ("images no list", edit("sets/0/images", {}), "every set needs an identity and a list of images"),
    ("a row that is no text", edit("sets/0/row", ["x"]), "the row of a set is a text such as lvlm_va@oracle"),
    ("consumed no mapping", edit("sets/0/consumed", [7]), "what the reviewed source consumed is a name -> a number"),
    ("a boolean amount", edit("sets/0/consumed/x", True), "a number of at least 0"),
    ("negative amount", edit("sets/0/consumed/x", -1), "a number of at least 0"),
    ("infinite amount", edit("sets/0/consumed/x", float("inf")), "a number of at least 0"),
    ("no number", edit("sets/0/consumed/x", float("nan")), "a number of at least 0"),
    ("two sets", twice("sets"), "holds one alignment set twice: keep the review that counts"),
    ("two images", twice("sets", 0, "images"), "a set holds an image twice"),
    ("an image that is none", edit("sets/0/images/0", 3), FORM),
    ("position missing", edit(f"{FIRST}/position", None), FORM),
    ("position negative", edit(f"{FIRST}/position", -1), FORM),
    ("position a boolean", edit(f"{FIRST}/position", True), FORM),
    ("position too large", edit(f"{FIRST}/position", IMAGES), f"position {IMAGES} is outside the {IMAGES} images"),
    ("position absurd", edit(f"{FIRST}/position", 10**30), f"is outside the {IMAGES} images"),
    ("segment unknown", edit(f"{FIRST}/verdicts/4", 1), "image 1 has no segment 4"),
    ("segment no number", edit(f"{FIRST}/verdicts/pink", 1), FORM),
    ("segment negative", edit(f"{FIRST}/verdicts/-1", 1), FORM),
    ("segment named twice", lambda c: json.dumps(c).replace('"2": 0}', '"2": 0, "02": 1}', 1), FORM),
    ("verdict a boolean", edit(f"{FIRST}/verdicts/0", True), FORM),
    ("verdict a text", edit(f"{FIRST}/verdicts/0", "spurious"), FORM),
    ("verdict a fraction", edit(f"{FIRST}/verdicts/0", 1.0), FORM),
    ("verdict 2", edit(f"{FIRST}/verdicts/0", 2), FORM),
    ("answers no list", edit(f"{FIRST}/overruled", "1"), "image 1: 'overruled' is a list of segment numbers"),
    ("answers booleans", edit(f"{FIRST}/agreed", [True]), "image 1: 'agreed' is a list of segment numbers"),
]


@pytest.mark.parametrize(("change", "message"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_faults_of_the_file_are_sentences(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(DataError) as refused:
        ask(save(tmp_path / "review.json", change(review())))
    assert message in str(refused.value)
    assert "review.json" in str(refused.value)


def test_bytes_that_are_no_text_and_a_file_that_has_gone(tmp_path: Path) -> None:
    file = tmp_path / "review.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not JSON"):
        ask(str(file))
    source = Person(str(file))
    file.unlink()
    with pytest.raises(DataError, match="cannot read the review file"):
        _ = source.supervision
    with pytest.raises(ConfigError, match=r"there is no file '.*'; `vabench review` writes the page"):
        Person(str(file))


def test_a_file_beyond_any_size_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(tmp_path / "a.json", review())
    monkeypatch.setattr("methods.lvlm_va.person.LIMIT", 100)
    with pytest.raises(DataError, match="larger than any review file"):
        ask(file)


@pytest.mark.parametrize("row", ["lvlm_va@nobody", "lvlm_va@oracle(", "a@b@c"])
def test_a_row_that_nobody_knows_is_an_error_of_the_user(tmp_path: Path, row: str) -> None:
    with pytest.raises(VabenchError):
        ask(save(tmp_path / "a.json", review(row)))


def test_a_review_of_other_segments_is_refused(tmp_path: Path) -> None:
    """Not a fault of the file: a preset has several seeds, and the file is right for one of them."""
    content = review()
    content["sets"][0]["identity"] = "0" * 64
    with pytest.raises(NotApplicable, match="holds no verdicts on this alignment set"):
        ask(save(tmp_path / "a.json", content))


def test_the_identity_is_that_of_images_and_segments() -> None:
    alignment, _ = toy_alignment(IMAGES, blank=1)
    same, _ = toy_alignment(IMAGES, blank=1)
    assert alignment_identity(alignment) == alignment_identity(same)
    same.segments.labels[2, 3, 2] = 2
    other_segments = alignment_identity(same)
    other_images, _ = toy_alignment(IMAGES, blank=1)
    other_images.index = other_images.index.flip(0)
    assert len({alignment_identity(alignment), other_segments, alignment_identity(other_images)}) == 3


def test_parameters_and_spec(tmp_path: Path) -> None:
    file = save(tmp_path / "a.json", review())
    source = registry("mask_sources").create(parse_spec(f"person(file={file},only_reviewed=true)"))
    assert source.params == {"file": file, "only_reviewed": True}
    assert source.info.file_params == ("file",)  # its content is part of a cell's identity
