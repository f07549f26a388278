"""Critiques per second of the local back end, timing only: a Qwen2.5-VL of random weights, whose answers mean nothing.

    PYTHONPATH=tests python -m benchmarks.critic_on_gpu --out critic.json          # 7-billion shape, on a GPU
    PYTHONPATH=tests python -m benchmarks.critic_on_gpu --shape tiny --out t.json  # the same code on a CPU

The questions are those that the critic asks about the quick start's alignment set: three pictures of 336 px and the
prompt. `critique` decodes a free text to its limit (random weights never end one); `verdicts` decodes JSON under the
schema. Decoding reads all weights of the language model and the keys and values of every row once a step; that many
bytes at the measured bandwidth of this device are the bound that the decoding rate is set against.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.questions import questions
from checkpoints import SEVEN_BILLION, TINY, WORDS, save_qwen

from harness.lvlm.client import Answer, Meter, Query, Usage
from harness.lvlm.local import Local, encode
from harness.lvlm.local_model import Loaded, load
from harness.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]


def ask(folder: Path, asked: Sequence[Query], batch: int) -> tuple[list[str], Usage, float]:
    """Answers ('' for one that was cut off), usage and seconds of one call of the back end."""
    meter, client = Meter(), Local(str(folder), batch=batch)
    _wait()
    start = time.perf_counter()
    replies = client.ask(asked, meter)
    _wait()
    return [r.text if isinstance(r, Answer) else "" for r in replies], meter.used, time.perf_counter() - start


def back_end(
    folder: Path, asked: Sequence[Query], batches: Sequence[int], rounds: int, say: Callable[[Any], None]
) -> Any:
    """Images per second at each batch size, interleaved rounds, against one by one; how many answers are equal."""
    alone, _, _ = ask(folder, asked[:4], 1)  # warm-up
    seconds: dict[int, list[float]] = {1: [], **{b: [] for b in batches}}
    found: dict[int, dict[str, Any]] = {b: {} for b in seconds}
    few = asked[: max(4, len(asked) // 8)]
    for _ in range(rounds):
        for batch in seconds:
            given = few if batch == 1 else asked
            texts, usage, took = ask(folder, given, batch)
            seconds[batch].append(took / len(given))
            if batch == 1:
                alone = texts
            same = sum(a == b for a, b in zip(texts, alone, strict=False))
            found[batch] = {
                "images": len(given),
                "images_per_s": 1 / statistics.median(seconds[batch]),
                "images_per_s_rounds": [1 / s for s in seconds[batch]],
                "prompt_tokens_per_image": usage.prompt_tokens / len(given),
                "answer_tokens_per_image": usage.completion_tokens / len(given),
                "equal_answers": f"{same} of {len(alone)}" if all(alone) else "cut off at the limit, not compared",
                "times_one_by_one": statistics.median(a / b for a, b in zip(seconds[1], seconds[batch], strict=True)),
            }
            say({"batch": batch, **found[batch]})
    return found


def bytes_per_step(loaded: Loaded) -> tuple[int, int]:
    """Bytes of weights that a decoding step reads, and bytes of keys and values per token of context."""
    body, head = loaded.model.model.language_model, loaded.model.get_output_embeddings()
    tables = {id(p) for p in body.get_input_embeddings().parameters()}  # one row of it is read
    weights = sum(p.numel() * p.element_size() for p in body.parameters() if id(p) not in tables)
    weights += sum(p.numel() * p.element_size() for p in head.parameters())
    text = loaded.model.config.get_text_config()
    width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    return weights, 2 * text.num_hidden_layers * width * loaded.model.dtype.itemsize


def bandwidth(device: str, gigabytes: float) -> dict[str, float]:
    """Bytes per second of a copy (read and written) and of a sum (read): median of 5, the better one is the bound."""
    table = torch.ones(int(gigabytes * 2**30 / 4), device=device)
    target = torch.empty_like(table)
    works = {"copy": (2, lambda: target.copy_(table)), "sum": (1, lambda: table.sum())}
    rates = {}
    for name, (passes, work) in works.items():
        taken = [_timed(work) for _ in range(7)][2:]
        rates[name] = passes * table.numel() * 4 / statistics.median(taken)
    return rates


def decoding(loaded: Loaded, asked: Sequence[Query], tokens: int, best: float, **how: Any) -> dict[str, Any]:
    """Seconds a step of greedy `generate`, prompt apart, against the bandwidth's bound. how: more of its options.

    None for the step and what follows from it, where the answer's steps drown in the noise of the prompt's time.
    """
    inputs = encode(loaded, asked)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def run(new: int) -> None:
        with torch.inference_mode():
            loaded.model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, **how)

    first = _timed(lambda: run(tokens))
    whole = statistics.median(_timed(lambda: run(tokens)) for _ in range(3))
    _timed(lambda: run(2))
    start = statistics.median(_timed(lambda: run(2)) for _ in range(3))
    step = (whole - start) / (tokens - 2) if whole > start else None
    weights, per_token = bytes_per_step(loaded)
    context = int(inputs["attention_mask"].sum()) + len(asked) * tokens // 2
    bound = (weights + per_token * context) / best
    return {
        "batch": len(asked),
        "first_call_s": first,
        "prompt_s": start,
        "step_ms": 1e3 * step if step else None,
        "tokens_per_s": len(asked) / step if step else None,
        "bound_step_ms": 1e3 * bound,
        "share_of_bandwidth_bound": bound / step if step else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }


def _timed(work: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(shape: str, out: Path, *, batches: Sequence[int], images: int, tokens: int, rounds: int) -> dict[str, Any]:
    """All of it; the record is written anew after every part, so that a run that is cut short keeps what it has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record: dict[str, Any] = {
        "what": "critiques per second of the local back end, timing only",
        "weights": "random weights: no answer means anything",
        "shape": "Qwen2.5-VL-7B" if shape == "7B" else f"{shape} Qwen2.5-VL",
        "provenance": provenance(),
    }

    def say(part: Any, **facts: Any) -> None:
        record.update(facts)
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(part if part is not None else facts), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "random-weight Qwen2.5-VL".replace(" ", "-")
        text = [file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))]
        start = time.perf_counter()
        if shape == "7B":
            save_qwen(folder, shape=SEVEN_BILLION, side=336, words=8000, text=text, device=device)
        else:
            save_qwen(folder, shape=TINY, side=112, words=WORDS)
        saved = time.perf_counter() - start
        loaded = load(str(folder), "main", "auto", "auto")
        say(
            None,
            parameters=sum(p.numel() for p in loaded.model.parameters()),
            dtype=str(loaded.model.dtype),
            save_s=saved,
            load_s=time.perf_counter() - start - saved,
        )
        rates = bandwidth(device, 8.0 if device == "cuda" else 0.1)
        say(None, bandwidth_bytes_per_s=rates)
        overrides = ["recipes.base.epochs=2", f"results={Path(scratch) / 'results'}", "device=cpu"]

        def asked(style: str, limit: int) -> list[Query]:
            client = f"client=local(path={folder})"
            return questions(f"lvlm_va@critic({client},style={style},max_answer={limit})", overrides)[:images]

        critique = asked("critique_and_judge", tokens)
        steps = [decoding(loaded, critique[:b], tokens, max(rates.values())) for b in (1, *batches)]
        say(steps, decoding=steps)
        found = back_end(folder, critique, batches, rounds, lambda part: say(part))
        say(None, critique=found)
        verdicts = asked("one_call", 300)
        say(None, verdicts=back_end(folder, verdicts, batches, rounds, lambda part: say(part)))
        compiled = []
        for batch in (1, batches[-1]) if device == "cuda" else ():
            try:
                compiled.append(
                    decoding(loaded, critique[:batch], tokens, max(rates.values()), cache_implementation="static")
                )
            except Exception as error:  # an experiment beside the measurement: its failure is a finding
                compiled.append({"batch": batch, "error": f"{type(error).__name__}: {str(error)[:500]}"})
            say(compiled[-1], static_cache=compiled)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("7B", "tiny"), default="7B")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.shape == "7B":
        measure("7B", given.out, batches=(8, 32), images=32, tokens=128, rounds=3)
    else:
        measure("tiny", given.out, batches=(8,), images=16, tokens=16, rounds=2)
