"""From nothing to a folder that holds an embedded critic: data, training, evaluation, card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.errors import ConfigError, VabenchError
from methods.lvlm_va.embedded.card import SUITES, write_card
from methods.lvlm_va.embedded.evaluate import evaluate
from methods.lvlm_va.embedded.items import HELD_OUT, pools, training_items
from methods.lvlm_va.embedded.train import Log, Plan, train


def build(out: Path, seed: int, share: float = 1.0, score: bool = True, log: Log | None = None) -> dict[str, Any]:
    """Train a critic and write weights, tokenizer, processor, `training.jsonl`, `card.json` and `card.md` to `out`.

    Args:
        share: of the shipped critic's training steps and data; 0.01 makes a toy. score: evaluate it for the card.
        log: also gets every line of `training.jsonl`.

    Raises:
        ConfigError: a share out of (0, 4]. VabenchError: the folder cannot be written.
    """
    if not 0 < share <= 4:
        raise ConfigError(f"the share of the full training must lie in (0, 4], got {share}")
    full = Plan()
    plan = Plan(vision_steps=max(2, round(full.vision_steps * share)), steps=max(2, round(full.steps * share)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of additions, and so the weights, would depend on it
    try:
        out.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        items = training_items(seed, min(1.0, share))
        with (out / "training.jsonl").open("w", encoding="utf-8") as file:

            def tell(line: Mapping[str, Any]) -> None:
                file.write(json.dumps(dict(line)) + "\n")
                file.flush()
                if log is not None:
                    log(dict(line))

            model, processor = train(items, plan, seed, tell)
        model.save_pretrained(out)
        processor.save_pretrained(out)
        known = pools(held_out=True)
        facts = {
            "suites": [name for name in SUITES if name in known],
            "seed": seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "masks": len(items),
            "held_out": {name: count for name, count in HELD_OUT.items() if name in known},
            "plan": plan.as_dict(),
            "cpu_seconds": round(time.process_time() - start, 1),
        }
        write_card(out, facts, {})
        return write_card(out, facts, evaluate(out, seed)) if score else facts
    except OSError as error:
        raise VabenchError(f"cannot write the critic to '{out}': {error}") from error
    finally:
        torch.set_num_threads(threads)
