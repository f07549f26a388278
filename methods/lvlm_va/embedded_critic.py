"""The critic that the package ships: a tiny vision-language model, trained on the critic pools of the decoy suites."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from harness.errors import NotApplicable
from harness.spec import Spec
from methods import critics
from methods.lvlm_va.critic import Critic, Critique

if TYPE_CHECKING:
    from harness.context import RunContext
    from harness.masks import AlignmentSet
    from harness.supervision import Task


@cache
def card() -> dict[str, Any]:
    """The model card's machine-readable part: suites, seed, sha256 of the weights, masks seen in training."""
    text = (files("methods.lvlm_va.embedded") / "weights" / "card.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


class EmbeddedCritic(Critic):
    """The critic's own code with the shipped model behind the local back end, one call an image.

    In-domain: it was trained with masks of images of the same kind (never of a suite's split), and the ledger says how
    many. It refuses suites that it was not trained for. describes and probe: as for `critic`.
    """

    info = critics.EMBEDDED

    def __init__(self, describes: str = "both", batch: int = 64, probe: str = "none"):
        self.batch = batch
        super().__init__(
            client=Spec("local", {"path": str(files("methods.lvlm_va.embedded") / "weights"), "batch": batch}),
            describes=describes,
            style="short",
            size=32,
            probe=probe,
        )

    @property
    def params(self) -> dict[str, Any]:
        """What the question says; the weights' hash stands among the cell's files."""
        return {"describes": self.describes, "probe": self.probe, "weights": card()["sha256"]}

    def examine(self, alignment: AlignmentSet, task: Task, context: RunContext) -> list[Critique]:
        """As `Critic.examine`.

        Raises:
            NotApplicable: a suite that the model was not trained for.
        """
        known = card()["suites"]
        if task.suite not in known:
            raise NotApplicable(
                f"the embedded critic was trained for {' and '.join(known)} only and has never seen images like those "
                f"of '{task.suite or 'this suite'}'; use critic(client=...) with a general vision-language model"
            )
        task.ledger.charge("in_domain_masks", "critic_pool", int(card()["masks"]))
        return super().examine(alignment, task, context)
