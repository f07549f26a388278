from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from critic_toys import RuleClient, rule_client  # noqa: F401
from mask_toys import toy_alignment, toy_context

from harness.errors import ConfigError, NotApplicable, SupervisionError
from harness.lvlm.client import CapReached
from harness.masks import NO_VERDICT, RELEVANT, SPURIOUS, mask_from_verdicts
from harness.supervision import Supervision, Task
from methods.lvlm_va.critic import PROBES, Critic
from methods.lvlm_va.embedded_critic import EmbeddedCritic
from methods.lvlm_va.prompts import Specification, load_wording

pytestmark = pytest.mark.usefixtures("rule_client")
TEXTS = {
    "core": {f"class {k}": f"core sentence {k}" for k in range(3)},
    "spurious": {f"class {k}": f"spurious sentence {k}" for k in range(3)},
}


def described(task: Task, supervision: Supervision = Critic.info.supervision) -> Task:
    return Task(
        task._splits,
        supervision,
        who="a test",
        class_names=task.class_names,
        group_names=task.group_names,
        descriptions=TEXTS,
        suite="toy",
    )


def critic(**parameters: object) -> Critic:
    return Critic(client="rule(ring=0.26)", **{"style": "one_call", "size": 64, **parameters})  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["one_call", "critique_and_judge"])
def test_verdicts_follow_the_pictures(style: str) -> None:
    alignment, task = toy_alignment(20, blank=2)
    found = critic(style=style).masks(alignment, described(task), toy_context())
    assert found.verdicts is not None
    assert (found.verdicts[:2] == NO_VERDICT).all()
    assert (found.verdicts[2:, 0] == SPURIOUS).all()  # the corner
    assert (found.verdicts[2:, 1:3] == RELEVANT).all()  # the middle
    assert (found.verdicts[:, 3] == NO_VERDICT).all()  # the segment that is always empty
    assert torch.equal(found.masks, mask_from_verdicts(alignment.segments, found.verdicts))
    assert torch.equal(found.masks[2:], alignment.segments.labels[2:] == 0)


def test_calls_tokens_and_sentences_are_charged() -> None:
    alignment, task = toy_alignment(10)
    asked = described(task)
    context = toy_context()
    critic(style="critique_and_judge").masks(alignment, asked, context)
    ledger = asked.ledger.as_dict()
    assert ledger["lvlm_calls/train"] == 20
    assert ledger["lvlm_prompt_tokens/train"] == 200
    assert ledger["sentences/core"] == 3
    assert ledger["sentences/spurious"] == 3
    assert context.notes["lvlm_train"]["prompts"] == load_wording().hash
    assert context.notes["lvlm_train"]["asked"] == 10


@pytest.mark.parametrize(
    ("describes", "present", "absent"), [("core", "core", "spurious"), ("spurious", "spurious", "core")]
)
def test_the_question_holds_the_description_that_was_asked_for(
    rule_client: list[RuleClient],  # noqa: F811
    describes: str,
    present: str,
    absent: str,
) -> None:
    alignment, task = toy_alignment(4)
    asked = described(task)
    critic(describes=describes).masks(alignment, asked, toy_context())
    prompt = rule_client[-1].asked[0].prompt
    assert f"{present} sentence" in prompt
    assert f"{absent} sentence" not in prompt
    assert f"sentences/{absent}" not in asked.ledger.as_dict()


def test_an_unusable_answer_is_asked_again_once_and_then_no_verdict(rule_client: list[RuleClient]) -> None:  # noqa: F811
    alignment, task = toy_alignment(6)
    once, never = toy_context(), toy_context()
    found = Critic(client="rule(broken=once,ring=0.26)", style="one_call", size=64).masks(
        alignment, described(task), once
    )
    assert (found.verdicts == NO_VERDICT).sum() == 6  # the empty segments alone
    assert once.notes["lvlm_train"]["asked_again"] == 6
    found = Critic(client="rule(broken=always)", style="one_call", size=64).masks(alignment, described(task), never)
    assert (found.verdicts == NO_VERDICT).all()
    assert found.empty()
    assert never.notes["lvlm_train"]["failures"] == {"invalid": 6}
    assert len(rule_client[-1].asked) == 12


def test_a_cap_stops_with_a_sentence() -> None:
    alignment, task = toy_alignment(6)
    with pytest.raises(CapReached, match=r"calls .* \(4 of 4\).*raise max_calls"):
        critic(max_calls=4).masks(alignment, described(task), toy_context())


def test_descriptions_need_their_supervision() -> None:
    alignment, task = toy_alignment(4)
    with pytest.raises(SupervisionError, match="TEXT"):
        critic().masks(alignment, described(task, Supervision.LABELS), toy_context())


def test_colours_are_assigned_by_lot_and_stay_the_same_for_a_seed() -> None:
    alignment, task = toy_alignment(30)
    first = critic().examine(alignment, described(task), toy_context(seed=1))
    again = critic().examine(alignment, described(task), toy_context(seed=1))
    other = critic(probe="colours").examine(alignment, described(task), toy_context(seed=1))
    assert [c.colours for c in first] == [c.colours for c in again]
    assert [c.colours for c in first] != [c.colours for c in other]
    assert len({c.colours[0] for c in first}) > 3
    assert [dict(c.verdicts) for c in first] == [dict(c.verdicts) for c in other]


@pytest.mark.parametrize("probe", PROBES)
def test_probes_change_what_they_say(rule_client: list[RuleClient], probe: str) -> None:  # noqa: F811
    alignment, task = toy_alignment(12)
    style = "critique_and_judge" if probe == "paraphrase" else "one_call"
    plain = critic(style=style).masks(alignment, described(task), toy_context())
    baseline = rule_client[-1].asked
    probed = critic(style=style, probe=probe).masks(alignment, described(task), toy_context())
    asked = rule_client[-1].asked
    pictures = [
        all((a == b).all() for a, b in zip(p.images, q.images, strict=True))
        for p, q in zip(baseline, asked, strict=True)
    ]
    prompts = [p.prompt == q.prompt for p, q in zip(baseline, asked, strict=True)]
    shows_others = probe in ("image_free", "swapped_image", "mirror", "colours")
    says_other = probe in ("swapped_specification", "order", "paraphrase")
    assert all(pictures) != shows_others
    if probe != "colours":  # other colours are other names
        assert all(prompts) != says_other
    if probe == "image_free":
        assert all((image == 0).all() for query in asked for image in query.images)
        assert not (probed.verdicts == SPURIOUS).any()
    elif (
        probe != "swapped_image"
    ):  # the rule looks at places only, and those do not move (or are mirrored with the image)
        assert torch.equal(plain.verdicts, probed.verdicts)  # type: ignore[arg-type]
    if probe == "repeat":
        assert all(query.decoding.seed == 1 for query in asked)


def test_swapping_a_specification_swaps_its_sentences() -> None:
    assert Specification("a", "b").swapped() == Specification("b", "a")
    assert Specification("a", None).swapped() == Specification(None, "a")


@pytest.mark.parametrize(
    "parameters", [{"describes": "all"}, {"style": "chat"}, {"probe": "upside_down"}, {"size": 3}, {"size": True}]
)
def test_wrong_parameters_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        critic(**parameters)


def test_wording_of_the_users_own_replaces_single_files(tmp_path: Path) -> None:
    (tmp_path / "one_call.md").write_text("Only {{ class_name }} and {{ colours|join(' ') }}?")
    own, built_in = load_wording(str(tmp_path)), load_wording()
    assert own.critic("mole", Specification("c", None), ["red"], "one_call") == "Only mole and red?"
    assert own.judge("text", ["red"]) == built_in.judge("text", ["red"])
    assert own.hash != built_in.hash


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("critic.md", "{{ nonsense }}", "critic.md cannot be used"),
        ("critic.md", "{% for %}", "critic.md cannot be used"),
        ("judge.md", "{{ ''.__class__.__mro__ }}", "judge.md cannot be used"),
        ("few_shots.yaml", "- critique: x\n  verdicts: {red: maybe}", "example 1"),
        ("few_shots.yaml", "[", "not valid YAML"),
    ],
)
def test_wording_that_cannot_be_used_names_its_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    from harness.errors import DataError

    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_wording(str(tmp_path))


def test_the_embedded_critic_refuses_a_suite_that_it_was_not_trained_for() -> None:
    alignment, task = toy_alignment(4)
    with pytest.raises(NotApplicable, match="trained for decoy_digits and decoy_mnist only"):
        EmbeddedCritic().masks(alignment, described(task), toy_context())


def test_an_answer_about_colours_of_many_segments_has_numbered_names() -> None:
    alignment, task = toy_alignment(4)
    segments = alignment.segments
    wide = replace(segments, share=torch.cat([segments.share] * 3, 1))
    alignment._segments = lambda: wide  # type: ignore[assignment, return-value]
    critiques = critic().examine(alignment, described(task), toy_context())
    assert all(len(c.colours) == 12 for c in critiques)


def test_the_users_own_descriptions_replace_the_suites(tmp_path: Path, rule_client: list[RuleClient]) -> None:  # noqa: F811
    alignment, task = toy_alignment(4)
    own = tmp_path / "own.yaml"
    own.write_text("core:\n" + "".join(f"  class {k}: my words {k}\n" for k in range(3)))
    asked = described(task)
    critic(describes="core", descriptions=str(own)).masks(alignment, asked, toy_context())
    assert "my words" in rule_client[-1].asked[0].prompt
    assert asked.ledger.as_dict()["sentences/core"] == 3
    with pytest.raises(ConfigError, match="no section 'spurious'"):
        critic(describes="both", descriptions=str(own)).masks(alignment, described(task), toy_context())
