"""The model card of an embedded critic: what it is, what it saw, what it gets right, and where it must not be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUITES = ("decoy_digits", "decoy_mnist")
_RATES = ("accuracy", "fpr", "fnr")


def weights_sha256(folder: Path) -> str:
    """sha256 of the checkpoint's weights, hex."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def write_card(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """Write `card.json` and `card.md` into a checkpoint's folder.

    Args:
        facts: `suites`, `seed`, `parameters`, `masks` (pictures whose masks training saw), `held_out`, `plan`,
            `cpu_seconds`. scores: from `evaluate.evaluate`; empty where it was not run.
    """
    card = {**facts, "sha256": weights_sha256(folder), "in_domain": True, "scores": dict(scores)}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_text(card), encoding="utf-8")
    return card


def _text(card: Mapping[str, Any]) -> str:
    plan = ", ".join(f"{name} {value}" for name, value in card["plan"].items())
    held = ", ".join(f"{count} of {name}" for name, count in card["held_out"].items())
    lines = [
        "# The embedded critic: model card",
        "",
        "**What it is.** A vision-language model of the Idefics3 architecture (vision tower 3 x 96, 32 x 32 pictures, "
        f"patches of 4; Llama 3 x 128), {card['parameters']:,} parameters, trained from nothing by the code behind "
        "`vabench critic train`. It answers one question per image: for every coloured segment of an attribution map, "
        "is it spurious or relevant under a specification in words.",
        "",
        f"**In-domain.** It is made for {' and '.join(card['suites'])} only, and it learned from "
        f"{card['masks']:,} pictures of that kind *with their pixel masks*. It is no general vision-language model, "
        "and rows that use it must say so. No image of any split of any suite was used in training.",
        "",
        "**Training data.** Images of the suites' critic pools (in no split, whatever the seed), and digits drawn by "
        f"the generator. Kept from training: {held} images of the pools, and one font. Segments come from small "
        "networks trained on decoyed pool images (DeepLIFT-SHAP, six segments), and from invented attribution.",
        "",
        f"**Training.** Seed {card['seed']}; {plan}; {card['cpu_seconds']:.0f} CPU seconds. The loss stands in "
        "`training.jsonl`.",
        "",
        f"**Weights.** sha256 of `model.safetensors`: `{card['sha256']}`",
        "",
        *_tables(card["scores"]),
        "**Limits.** 28 x 28 grey digits, one small grey object in a corner, up to seven segments. The picture shows "
        "which pixels a segment holds, not how much attribution each of them has, but the truth (half of a segment's "
        "attribution on the object) depends on both: a part of the errors cannot be avoided. Clothes, photographs, "
        "colour, text in images and any other question were never seen. Segments of one image are not independent, "
        "so the intervals are somewhat too narrow. Training is repeatable on one machine with one thread; another "
        "processor can give other weights.",
        "",
    ]
    return "\n".join(lines)


def _tables(scores: Mapping[str, Any]) -> list[str]:
    if not scores:
        return ["**Scores.** Not evaluated.", ""]
    lines = [
        "**Scores.** Per segment, spurious = positive, with 95 % Wilson intervals; `balanced` is the mean of the "
        "accuracies on spurious and on relevant segments, 0.5 for answers that know nothing of the picture.",
        "",
        "| condition | pictures | accuracy | false-positive rate | false-negative rate | balanced |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in scores.items():
        rates = " | ".join(_rate(found[rate]) for rate in _RATES)
        lines.append(f"| {name} | {found['pictures']} | {rates} | {found['balanced']} |")
    lines += [
        "",
        "The specification turned round (the object matters, the digit must not): share of segments whose verdict "
        "changes, and accuracy under the turned specification.",
        "",
        "| condition | on object or digit | on the object | on the digit | turned: accuracy | turned: FPR |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in scores.items():
        if "flips" in found:
            shares = " | ".join(_rate(found[key]) for key in ("flips", "flips_object", "flips_digit"))
            turned = found["swapped"]
            lines.append(f"| {name} | {shares} | {_rate(turned['accuracy'])} | {_rate(turned['fpr'])} |")
    return [*lines, ""]


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "-"
    return f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] (n = {rate['n']})"
