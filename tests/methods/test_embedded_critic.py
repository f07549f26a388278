"""The shipped critic: its question, its checkpoint, that it sees, and that it can be trained again."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from harness.errors import ConfigError
from methods.lvlm_va.critic_command import critic
from methods.lvlm_va.embedded import items as made
from methods.lvlm_va.embedded import network
from methods.lvlm_va.embedded.card import weights_sha256
from methods.lvlm_va.embedded.evaluate import Verdicts, verdicts
from methods.lvlm_va.embedded.items import ABSENT, CORE, NEITHER, THING, Items
from methods.lvlm_va.embedded.question import answer, build
from methods.lvlm_va.embedded.questions import ask, colour_order
from methods.lvlm_va.embedded.train import make_batch
from methods.lvlm_va.overlay import render

WEIGHTS = Path(str(files("methods.lvlm_va.embedded") / "weights"))


@cache
def held_out() -> Items:
    """Pictures of the scanned digits' critic pool that training never saw."""
    found = made.held_out_items("decoy_digits", seed=7, models=1)
    assert found is not None
    return found[:120]


def test_the_question_names_what_is_given_and_its_schema_wants_every_colour() -> None:
    prompt, schema = build("3", "a handwritten three.", None, ["orange", "sky blue"])
    assert "Relevant: a handwritten three." in prompt
    assert "Spurious" not in prompt
    assert "Judge orange, sky blue." in prompt
    both, _ = build("3", "a digit", "a square", ["red"])
    assert both == "Class 3. Relevant: a digit. Spurious: a square. Judge red."
    good = answer(["orange", "sky blue"], [False, True])
    assert good == '{"orange": "relevant", "sky blue": "spurious"}'
    jsonschema.validate(json.loads(good), schema)
    for bad in ({"orange": "relevant"}, {"orange": "maybe", "sky blue": "spurious"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
    with pytest.raises(ConfigError, match="what must not matter"):
        build("3", None, None, ["red"])
    with pytest.raises(ConfigError, match="once"):
        build("3", "a digit", None, ["red", "red"])


def test_truth_follows_the_specification() -> None:
    items, rng = held_out(), np.random.default_rng(0)
    order = colour_order(len(items), rng)
    for k in range(20):
        for swapped, wanted in ((False, THING), (True, CORE)):
            asked = ask(items, k, order[k], rng, swapped=swapped, form=0, wording="own")
            assert asked.spurious == tuple(items.kind[k, asked.segments] == wanted)
            core, spurious = asked.prompt.split(" Spurious: ")
            assert ("square" in core) == swapped
            assert ("square" in spurious) != swapped
            assert set(asked.segments) == set(np.flatnonzero(items.kind[k] != ABSENT))
    assert {NEITHER, THING, CORE} <= set(np.unique(items.kind).tolist())


def scanned(held_out: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The critic pool that needs no files."""
    return made.pools(held_out, ["decoy_digits"])


def test_held_out_images_are_not_in_the_training_pool() -> None:
    (train, _), (kept, _) = (scanned(flag)["decoy_digits"] for flag in (False, True))
    known = {image.tobytes() for image in train}
    assert len(train) == 240
    assert len(kept) == made.HELD_OUT["decoy_digits"] == 60
    assert not any(image.tobytes() in known for image in kept)


def test_prompts_are_short_and_pictures_arrive_unchanged() -> None:
    processor = network.load(WEIGHTS)[1]
    items, rng = held_out(), np.random.default_rng(1)
    order = colour_order(len(items), rng)
    lengths = []
    for k in range(len(items)):
        asked = ask(items, k, order[k], rng, swapped=bool(k % 2), form=0, wording="own")
        lengths.append(len(processor.tokenizer(asked.prompt).input_ids))
    assert max(lengths) <= 64
    pictures = render(items.images[:1, None], items.labels[:1], size=network.SIDE, order=order[:1])[0]
    from PIL import Image

    turn = [*({"type": "image", "image": Image.fromarray(p)} for p in pictures), {"type": "text", "text": "Class 3."}]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": turn}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )
    assert inputs["pixel_values"].shape == (1, 3, 3, network.SIDE, network.SIDE)
    back = (inputs["pixel_values"][0] * 0.5 + 0.5).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(back, np.stack(pictures))
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(network.layout("Class 3.")).input_ids


def test_training_sees_what_the_processor_shows() -> None:
    items = held_out()[:4]
    batch = make_batch(items, np.arange(4), np.random.default_rng(2), augment=False)
    for k in range(4):
        pictures = render(items.images[k : k + 1, None], items.labels[k : k + 1], size=32, order=batch.order[k : k + 1])
        shown = (batch.pixels[k] * 0.5 + 0.5).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(shown, np.stack(pictures[0]))
        present = sorted(batch.order[k][items.kind[k] != ABSENT])
        assert np.flatnonzero(batch.table[k]).tolist() == present
        assert np.flatnonzero(batch.present[k].flatten(0, 1).any(0)).tolist() == present


def test_the_checkpoint_is_small_plain_and_the_one_of_its_card() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))
    assert card["sha256"] == weights_sha256(WEIGHTS)
    assert card["sha256"] in (WEIGHTS / "card.md").read_text(encoding="utf-8")
    assert card["suites"] == ["decoy_digits", "decoy_mnist"]
    assert card["masks"] > 1000
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 8 * 2**20
    model, processor = network.load(WEIGHTS)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"] <= 1_400_000
    assert "auto_map" not in json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    assert type(processor).__module__.startswith("transformers.")


@cache
def asked(**changes: str) -> Verdicts:
    return verdicts(WEIGHTS, held_out(), **changes)  # type: ignore[arg-type]


def test_it_sees() -> None:
    """On held-out scans; with black pictures, or with another item's, the same questions get no useful answer."""
    right, black, other = asked(), asked(control="black"), asked(control="another")
    assert right.failures == 0
    scores = right.scores()
    assert scores["accuracy"]["value"] >= 0.93
    assert scores["balanced"] >= 0.85
    for control in (black, other):
        assert control.scores()["balanced"] <= 0.65


def test_rates_count_what_they_say() -> None:
    truth = np.array([[1, 0, 0, 0, -1, -1], [1, 1, 0, -1, -1, -1]], dtype=np.int8)
    given = np.array([[1, 1, 0, 0, -1, -1], [0, 1, 0, -1, -1, -1]], dtype=np.int8)
    scores = Verdicts(given, truth, 0).scores()
    assert (scores["accuracy"]["value"], scores["accuracy"]["n"]) == (round(5 / 7, 4), 7)
    assert (scores["fpr"]["value"], scores["fpr"]["n"]) == (0.25, 4)
    assert (scores["fnr"]["value"], scores["fnr"]["n"]) == (round(1 / 3, 4), 3)
    assert scores["fpr"]["low"] < 0.25 < scores["fpr"]["high"]


def app() -> Typer:
    made_app = Typer()
    made_app.command()(critic)
    return made_app


def test_training_runs_at_toy_length_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.lvlm_va.embedded.build.pools", scanned)
    small = held_out()[:60]
    monkeypatch.setattr("methods.lvlm_va.embedded.build.training_items", lambda seed, scale: small)
    sums = []
    for name in ("one", "two"):
        out = tmp_path / name
        result = CliRunner().invoke(app(), ["train", "--out", str(out), "--minutes", "0.02", "--no-score"])
        assert result.exit_code == 0, result.output
        expected = {
            "model.safetensors",
            "tokenizer.json",
            "processor_config.json",
            "card.json",
            "card.md",
            "training.jsonl",
        }
        assert expected <= {file.name for file in out.iterdir()}
        card = json.loads((out / "card.json").read_text(encoding="utf-8"))
        assert card["masks"] == 60
        assert card["suites"] == ["decoy_digits"]
        lines = [json.loads(line) for line in (out / "training.jsonl").read_text(encoding="utf-8").splitlines()]
        assert {line["stage"] for line in lines} == {"vision", "answers"}
        sums.append(card["sha256"])
    assert sums[0] == sums[1]
    found = verdicts(tmp_path / "one", held_out()[:8])
    assert found.given.shape == (8, made.SEGMENTS)


def test_the_generator_makes_segments_of_every_kind() -> None:
    images, y = scanned(held_out=False)["decoy_digits"]
    found = made.invented((images[:100], y[:100]), seed=3)
    again = made.invented((images[:100], y[:100]), seed=3)
    assert np.array_equal(found.images, again.images)
    assert np.array_equal(found.labels, again.labels)
    assert min((found.kind == kind).sum() for kind in (NEITHER, THING, CORE)) > 20
    for k in range(100):
        present = np.unique(found.labels[k])
        assert set(np.flatnonzero(found.kind[k] != ABSENT)) == set(present[present >= 0])


def test_wrong_requests_are_refused_in_words() -> None:
    for words, message in (
        (["grow"], "no 'grow'"),
        (["train", "--minutes", "0"], "--minutes"),
    ):
        result = CliRunner().invoke(app(), words)
        assert isinstance(result.exception, ConfigError)
        assert message in str(result.exception)
