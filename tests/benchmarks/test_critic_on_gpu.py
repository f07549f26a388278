"""The script that times a 7-billion shape on a GPU runs here at toy size, so that it is ready where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.critic_on_gpu import bytes_per_step, measure
from checkpoints import SEVEN_BILLION

from harness.lvlm.local_model import Loaded


def test_the_whole_measurement_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    record = measure("tiny", out, batches=(2,), images=4, tokens=40, rounds=1)  # fewer steps drown in noise
    assert json.loads(out.read_text())["decoding"] == record["decoding"]
    assert record["weights"].startswith("random weights")
    assert record["verdicts"][2]["equal_answers"] == "4 of 4"  # the grammar ends them; a free text is cut off
    assert record["critique"][2]["answer_tokens_per_image"] == 40
    assert 0 < record["decoding"][0]["share_of_bandwidth_bound"] < 1


def test_the_bound_counts_what_a_step_of_the_7_billion_shape_reads() -> None:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=SEVEN_BILLION["text"], vision_config=SEVEN_BILLION["vision"])
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    weights, per_token = bytes_per_step(Loaded(model, None, None, (), 152064, 0, "meta"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(8.29e9, rel=0.01)  # as published: 8.29 B
    assert weights == pytest.approx(2 * 7.07e9, rel=0.01)  # 28 layers of 233 M and a head of 545 M
    assert per_token == 2 * 28 * 4 * 128 * 2  # keys and values, 4 heads of 128, two bytes each
