"""The ground truth and the controls: polarity, rates, determinism, and what each imitation keeps of its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mask_toys import SIZE, toy_alignment, toy_context, toy_split
from torch import Tensor

import baselines
import methods
from baselines import controls
from harness.errors import ConfigError, NotApplicable, SupervisionError
from harness.masks import MaskSet, MaskSource, mask_from_verdicts
from harness.registry import Registry, registry
from harness.spec import parse_spec
from harness.supervision import Supervision

INFOS = [
    baselines.GROUND_TRUTH,
    baselines.ALL_SEGMENTS,
    baselines.ALL_ONES,
    baselines.RANDOM_VERDICTS,
    baselines.INVERTED,
    baselines.SHUFFLED,
    baselines.TRANSLATED,
    baselines.LARGEST_SEGMENT,
    baselines.BORDER_SEGMENT,
    methods.ORACLE,
    methods.NOISY_ORACLE,
]
IMITATIONS = ("random_verdicts", "inverted", "shuffled", "translated")


@pytest.fixture(autouse=True)
def known_sources(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """The sources by name, whether or not the package is installed with its entry points."""
    sources: Registry[Any] = Registry("mask_sources", extra={info.name: info for info in INFOS})
    monkeypatch.setattr(controls, "registry", lambda kind: sources if kind == "mask_sources" else registry(kind))
    return sources


def build(spec: str) -> MaskSource:
    source: MaskSource = controls.registry("mask_sources").create(parse_spec(spec))
    return source


def ask(spec: str, n: int = 60, seed: int = 0, blank: int = 0) -> tuple[MaskSet, Any]:
    alignment, task = toy_alignment(n, blank=blank)
    return build(spec).masks(alignment, task, toy_context(seed)), alignment


def verdicts(given: MaskSet) -> Tensor:
    assert given.verdicts is not None
    assert given.verdicts.dtype == torch.int8
    return given.verdicts


ALL = [
    *("ground_truth", "ground_truth(images=all)", "all_segments", "all_ones", "largest_segment", "border_segment"),
    *(f"{name}(of=oracle)" for name in IMITATIONS),
    *("inverted(of=ground_truth)", "shuffled(of=ground_truth)", "translated(of=ground_truth)"),
    *("shuffled(of=inverted(of=oracle))", "oracle", "noisy_oracle(fpr=0.2,fnr=0.1)"),
]


@pytest.mark.parametrize("spec", ALL)
def test_every_source_is_deterministic_and_well_formed(spec: str) -> None:
    (first, alignment), (second, _) = ask(spec), ask(spec)
    assert torch.equal(first.masks, second.masks)
    assert first.masks.dtype == torch.bool
    assert first.masks.shape == (len(first.index), SIZE, SIZE)
    source = build(spec)
    assert (first.verdicts is not None) == ("ground_truth" not in spec and source.info.verdicts)
    assert build(f"inverted(of={spec})").params == {"of": {"name": source.info.name, "params": source.params}}
    rebuilt = controls.registry("mask_sources").create(parse_spec({"name": source.info.name, "params": source.params}))
    assert rebuilt.params == source.params
    if first.verdicts is not None:
        segments = alignment.segments
        assert torch.equal(first.masks, mask_from_verdicts(segments, first.verdicts))
        assert bool((first.verdicts[~segments.nonempty] == -1).all())
        assert set(first.verdicts[segments.nonempty].tolist()) <= {0, 1}


def test_one_means_penalise_here() -> None:
    """Polarity: the true decoy is segment 0 of the toy, and a perfect critic marks it and nothing else."""
    given, alignment = ask("oracle")
    assert bool((verdicts(given)[:, 0] == 1).all())
    assert bool((verdicts(given)[:, 1:3] == 0).all())
    truth = toy_split("train", 120, 0).masks[:60]  # type: ignore[index]
    assert torch.equal(given.masks, truth)
    opposite, _ = ask("inverted(of=oracle)")
    assert not bool((opposite.masks & truth).any())
    assert torch.equal(opposite.masks, (alignment.segments.labels > 0))


def test_ground_truth_reads_the_alignment_images_or_all_and_is_charged_for_them() -> None:
    alignment, task = toy_alignment()
    some = build("ground_truth").masks(alignment, task, toy_context())
    assert torch.equal(some.masks, toy_split("train", 120, 0).masks[:60])  # type: ignore[index]
    assert task.ledger.as_dict()["masks/train"] == 60
    everything = build("ground_truth(images=all)").masks(alignment, task, toy_context())
    assert torch.equal(everything.masks, toy_split("train", 120, 0).masks)  # type: ignore[arg-type]
    assert everything.index.tolist() == list(range(120))
    assert task.ledger.as_dict()["masks/train"] == 120
    with pytest.raises(ConfigError, match="images"):
        build("ground_truth(images=some)")


def test_all_segments_and_all_ones() -> None:
    given, alignment = ask("all_segments", blank=5)
    assert torch.equal(given.masks, alignment.segments.labels >= 0)
    assert not bool(given.masks[:5].any())
    assert bool(ask("all_ones", blank=5)[0].masks.all())


def test_largest_segment_has_the_largest_share() -> None:
    given, alignment = ask("largest_segment", blank=3)
    chosen = verdicts(given) == 1
    assert chosen.sum(1).tolist() == [0] * 3 + [1] * 57
    assert torch.equal(chosen[3:].int().argmax(1), alignment.segments.share[3:].argmax(1))
    assert len(chosen[3:].int().argmax(1).unique()) > 1


def test_border_segment_is_the_one_in_the_outer_ring() -> None:
    given, _ = ask("border_segment", blank=3)
    assert verdicts(given)[3:, 0].tolist() == [1] * 57  # the decoys sit in corners
    assert not bool((verdicts(given)[:, 1:] == 1).any())
    _, alignment = ask("border_segment")
    alignment.segments.labels[alignment.segments.labels == 0] = -1  # without them no segment reaches the border
    inner = build("border_segment").masks(alignment, toy_alignment()[1], toy_context())
    assert inner.empty()
    with pytest.raises(ConfigError, match="ring"):
        build("border_segment(ring=0.7)")


def test_random_verdicts_have_the_imitated_rate_and_ignore_the_truth() -> None:
    alignment, task = toy_alignment(120, blank=20)
    context = toy_context()
    rates, on_decoy = [], []
    for seed in range(30):
        context = toy_context(seed)
        given = verdicts(build("random_verdicts(of=oracle)").masks(alignment, task, context))
        assert context.notes["random_verdict_rate"] == pytest.approx(1 / 3)  # one true decoy in three segments
        rates.append(float((given[alignment.segments.nonempty] == 1).double().mean()))
        on_decoy.append(float((given[20:, 0] == 1).double().mean()))
    n = 30 * 300
    assert abs(sum(rates) / 30 - 1 / 3) < 4 * (2 / 9 / n) ** 0.5
    assert abs(sum(on_decoy) / 30 - 1 / 3) < 4 * (2 / 9 / (n / 3)) ** 0.5
    assert len(set(rates)) > 5
    with pytest.raises(ConfigError, match=r"judges segments.*translated\(of=ground_truth\)"):
        build("random_verdicts(of=ground_truth)")


def test_inverted_flips_verdicts_keeps_missing_ones_and_complements_plain_masks() -> None:
    (given, _), (flipped, _) = ask("noisy_oracle"), ask("inverted(of=noisy_oracle)")
    a, b = verdicts(given), verdicts(flipped)
    assert torch.equal(b, torch.where(a == -1, a, 1 - a))
    truth, complement = ask("ground_truth")[0], ask("inverted(of=ground_truth)")[0]
    assert torch.equal(complement.masks, ~truth.masks)


def test_a_missing_verdict_stays_missing_when_inverted() -> None:
    class Silent(controls.AllSegments):
        def masks(self, alignment: Any, task: Any, context: Any) -> MaskSet:
            given = super().masks(alignment, task, context)
            given.verdicts[:, 1] = -1  # type: ignore[index]
            return given

    source = controls.Inverted("all_segments")
    source.of = Silent()
    alignment, task = toy_alignment()
    assert verdicts(source.masks(alignment, task, toy_context())).unique(dim=0).tolist() == [[0, -1, 0, -1]]


def test_shuffled_gives_every_image_the_critique_of_another() -> None:
    order = controls.derangement(60, toy_context().generator("shuffled"))
    assert sorted(order.tolist()) == list(range(60))
    assert not bool((order == torch.arange(60)).any())
    (truth, _), (moved, _) = ask("ground_truth"), ask("shuffled(of=ground_truth)")
    assert torch.equal(moved.masks, truth.masks[order])
    (given, _), (shuffled, _) = ask("noisy_oracle"), ask("shuffled(of=noisy_oracle)")
    assert torch.equal(verdicts(shuffled), verdicts(given)[order])
    assert not torch.equal(verdicts(shuffled), verdicts(given))
    for n in (2, 3):
        for seed in range(20):
            small = controls.derangement(n, torch.Generator().manual_seed(seed))
            assert not bool((small == torch.arange(n)).any())
    with pytest.raises(NotApplicable, match="two images"):
        ask("shuffled(of=oracle)", n=1)


def test_shuffled_treats_a_segment_that_the_other_image_lacks_as_relevant() -> None:
    given, alignment = ask("shuffled(of=all_segments)", blank=30)
    found, nonempty = verdicts(given), alignment.segments.nonempty
    assert set(found[nonempty].tolist()) == {0, 1}
    assert bool((found[~nonempty] == -1).all())


def test_translated_keeps_area_and_shape_and_never_the_place() -> None:
    (truth, _), (moved, _) = ask("ground_truth"), ask("translated(of=ground_truth)")
    assert torch.equal(moved.masks.flatten(1).sum(1), truth.masks.flatten(1).sum(1))
    assert not bool((moved.masks == truth.masks).flatten(1).all(1).any())
    offsets = set()
    for before, after in zip(truth.masks, moved.masks, strict=True):
        found = [
            (dy, dx) for dy in range(SIZE) for dx in range(SIZE) if torch.equal(before.roll((dy, dx), (0, 1)), after)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 25
    assert ask("translated(of=oracle)")[0].verdicts is None


@pytest.mark.parametrize("name", IMITATIONS)
def test_an_imitation_is_charged_for_what_it_imitates(name: str) -> None:
    source = build(f"{name}(of=oracle)")
    assert source.supervision == Supervision.MASKS
    assert build("inverted(of=all_segments)").supervision == Supervision.NONE
    alignment, task = toy_alignment()
    task._supervision = Supervision.LABELS
    blind = type(alignment)(task.train, alignment.index, lambda: alignment.maps, lambda: alignment.segments)
    with pytest.raises(SupervisionError, match="masks"):
        source.masks(blind, task, toy_context())
    assert "masks/train" not in task.ledger.as_dict()


def test_wrong_specs_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'of'"):
        build("shuffled(off=oracle)")
