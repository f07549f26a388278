"""The local back end on tiny random-weight checkpoints: real architectures and processors, no knowledge."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import let_end_anywhere, save_idefics, save_qwen

from harness.errors import ConfigError, Skipped
from harness.lvlm import local_model
from harness.lvlm.client import Answer, CapReached, Decoding, Meter, Query
from harness.lvlm.constrained import RowwiseDecoding
from harness.lvlm.local import Local, encode
from harness.registry import registry
from harness.spec import parse_spec

WORDS = ("spurious", "relevant", "absent")


def schema(*names):
    return {
        "type": "object",
        "properties": {name: {"enum": list(WORDS)} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }


def picture(seed, side=28):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def mixed(count=12, temperature=0.0):
    """Questions of unequal length, with none, one or two images, two schemas and free text."""
    forms = (schema("red", "green"), schema("blue"), None)
    decoding = Decoding(max_tokens=48, temperature=temperature, seed=3)
    return [
        Query(
            f"Which? {'why ' * (k % 5)}",
            tuple(picture(10 * k + i) for i in range((1, 1, 2, 0)[k % 4])),
            "Be brief." if k % 2 else "",
            forms[k % 3],
            decoding,
        )
        for k in range(count)
    ]


@pytest.fixture(scope="module", params=["qwen", "idefics"])
def folder(request, tmp_path_factory):
    save = {"qwen": save_qwen, "idefics": save_idefics}[request.param]
    return save(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def outcome(reply):
    return reply.text if isinstance(reply, Answer) else reply.kind


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_answers_are_those_of_asking_one_by_one_in_any_order(folder, temperature):
    queries = mixed(temperature=temperature)
    batched = Local(str(folder), batch=5).ask(queries, Meter())
    single = Local(str(folder), batch=1).ask(queries, Meter())
    turned = Local(str(folder), batch=5).ask(queries[::-1], Meter())[::-1]
    assert [outcome(r) for r in batched] == [outcome(r) for r in single] == [outcome(r) for r in turned]
    assert [r.usage.completion_tokens for r in batched] == [r.usage.completion_tokens for r in single]
    assert [r.usage.prompt_tokens for r in batched] == [r.usage.prompt_tokens for r in single]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_free_text_of_unequal_length_is_the_same_in_a_batch(folder, tmp_path, temperature):
    ending = let_end_anywhere(shutil.copytree(folder, tmp_path / "ending"))
    queries = [Query(f"Say {'it ' * k}", (picture(k),), decoding=Decoding(40, temperature)) for k in range(8)]
    batched = Local(str(ending), batch=8).ask(queries, Meter())
    single = Local(str(ending), batch=1).ask(queries, Meter())
    assert [outcome(reply) for reply in batched] == [outcome(reply) for reply in single]
    assert len({reply.usage.completion_tokens for reply in batched}) > 2
    assert sum(isinstance(reply, Answer) for reply in batched) > 3


def test_every_row_keeps_to_its_own_schema_and_free_text_is_free(folder):
    meter, queries = Meter(), mixed()
    replies = Local(str(folder), batch=4).ask(queries, meter)
    for query, reply in zip(queries, replies, strict=True):
        if query.schema is not None:
            assert isinstance(reply, Answer)
            assert set(reply.value) == set(query.schema["properties"])
            assert set(reply.value.values()) <= set(WORDS)
    assert (meter.used.calls, meter.used.retries) == (12, 0)


def test_without_the_mask_the_same_model_writes_no_json(qwen):
    """The bitmask is what makes it valid: the same weights, free, do not."""
    form = schema("red", "green")
    free = [Query("Which?", (picture(k),), decoding=Decoding(max_tokens=48)) for k in range(4)]
    bound = [Query("Which?", (picture(k),), schema=form, decoding=Decoding(max_tokens=48)) for k in range(4)]
    client = Local(str(qwen))
    assert all(isinstance(reply, Answer) for reply in client.ask(bound, Meter()))
    assert not any('"red"' in outcome(reply) for reply in client.ask(free, Meter()))


def test_the_mask_forbids_all_but_the_grammars_tokens_and_the_padding_of_the_vocabulary(qwen):
    loaded = local_model.load(str(qwen), "main", "cpu", "auto")
    assert loaded.vocabulary == 320 > loaded.words
    grammar = loaded.compiler.compile_json_schema('{"enum": ["spurious"]}', any_whitespace=False)
    queries = [Query("a"), Query("b")]
    decoding = RowwiseDecoding([grammar, None], queries, loaded.vocabulary, loaded.words)
    scores = decoding(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, loaded.vocabulary))
    texts = [loaded.processor.tokenizer.decode([k]) for k in scores[0].isfinite().nonzero().flatten().tolist()]
    assert texts
    assert all('"spurious"'.startswith(text) for text in texts)
    assert scores[1].isfinite().nonzero().flatten().tolist() == list(range(loaded.words))
    with pytest.raises(RuntimeError, match="forbids"):
        decoding(torch.full((2, 2), 299), torch.zeros(2, loaded.vocabulary))


def test_a_temperature_draws_from_the_softmax_and_hangs_on_seed_and_attempt():
    logits = torch.tensor([2.0, 1.0, 0.0])
    drawn = []
    for seed, attempt in itertools.product(range(1500), range(2)):
        query = Query("q", decoding=Decoding(temperature=2.0, seed=seed, attempt=attempt))
        scores = RowwiseDecoding([None], [query], 3, 3)(torch.zeros(1, 1, dtype=torch.long), logits[None])
        drawn.append(int(scores.argmax()))
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / len(drawn)
    assert torch.allclose(shares, (logits / 2).softmax(0), atol=0.03)
    assert drawn[0::2] != drawn[1::2]


def test_another_image_changes_the_logits(folder):
    loaded = local_model.load(str(folder), "main", "cpu", "auto")
    with torch.inference_mode():
        one, same, other = (
            loaded.model(**encode(loaded, [Query("Which?", (picture(seed),))])).logits[0, -1] for seed in (0, 0, 1)
        )
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 1e-3


def test_an_answer_without_an_end_is_truncated_and_a_foreign_schema_is_refused_alone(qwen):
    words = {"type": "string", "minLength": 200}
    long = Query("Which?", schema=words, decoding=Decoding(max_tokens=8))
    odd = Query("Which?", schema={"type": "nothing known"}, decoding=Decoding(max_tokens=8))
    truncated, refused = Local(str(qwen)).ask([long, odd], Meter())
    assert (truncated.kind, truncated.usage.completion_tokens) == ("truncated", 8)
    assert refused.kind == "refused"


def test_a_cap_lets_no_further_question_in_and_hands_over_the_rest(qwen):
    handed, meter = [], Meter(max_calls=3)
    with pytest.raises(CapReached):
        Local(str(qwen), batch=2).ask(mixed(8), meter, lambda k, reply: handed.append(k))
    assert len(handed) == meter.used.calls == 3


def test_memory_running_out_halves_the_batch(qwen, monkeypatch):
    loaded, sizes = local_model.load(str(qwen), "main", "auto", "auto"), []
    generate = loaded.model.generate

    def small(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no")
        return generate(**inputs)

    queries = [Query("Which?", schema=schema("red"), decoding=Decoding(max_tokens=32)) for _ in range(5)]
    expected = Local(str(qwen)).ask(queries, Meter())
    monkeypatch.setattr(loaded.model, "generate", small, raising=False)
    replies = Local(str(qwen)).ask(queries, Meter())
    assert sizes == [5, 2, 3, 1, 2]
    assert [r.text for r in replies] == [r.text for r in expected]
    monkeypatch.setattr(loaded.model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    assert [r.kind for r in Local(str(qwen)).ask(queries, Meter())] == ["server"] * 5


def test_identity_is_the_content_of_the_folder_and_the_precision(tmp_path):
    one, moved, other = save_qwen(tmp_path / "a"), save_qwen(tmp_path / "b"), save_qwen(tmp_path / "c", seed=1)
    identity = Local(str(one)).identity
    assert identity["model"].startswith("sha256:")
    assert identity == Local(str(moved)).identity
    assert identity != Local(str(other)).identity
    assert identity != Local(str(one), dtype="bfloat16").identity
    (moved / "README.md").write_text("says nothing")
    assert identity == Local(str(moved)).identity
    (moved / "chat_template.jinja").write_text("another template")
    assert identity != Local(str(moved)).identity


def test_of_a_large_file_size_and_both_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr(local_model, "LARGE", 2**21)
    (tmp_path / "config.json").write_text("{}")
    weights = bytearray(3 * 2**20)
    seen = []
    for change in (None, 0, len(weights) - 1, 3 * 2**19):
        if change is not None:
            weights[change] += 1
        (tmp_path / "model.safetensors").write_bytes(weights)
        os.utime(tmp_path / "model.safetensors", ns=(len(seen), len(seen)))
        seen.append(local_model.weights_identity(str(tmp_path), "main")["model"])
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[2]  # the documented blind spot: the middle of a large file


def test_a_hub_id_is_its_commit_in_the_cache(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    code = "from harness.lvlm.local import Local; print(Local('org/name').identity, Local('org/other').identity)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert "Skipped: the model 'org/other' (revision 'main') is neither in the cache" in done.stderr
    code = code.partition(", Local('org/other')")[0] + ")"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.strip() == str({"model": "org/name", "revision": commit, "dtype": "auto"})


def test_what_is_missing_is_said_in_a_sentence(qwen, tmp_path):
    with pytest.raises(Skipped, match="there is no model folder /nowhere"):
        Local("/nowhere").ask([Query("a")], Meter())
    with pytest.raises(Skipped, match=r"holds no config\.json"):
        _ = Local(str(tmp_path)).identity
    if not torch.cuda.is_available():
        with pytest.raises(Skipped, match="no CUDA device"):
            Local(str(qwen), device="cuda").ask([Query("a")], Meter())
    with pytest.raises(ConfigError, match="batch is a whole number"):
        registry("clients").create(parse_spec(f"local(path={qwen},batch=0)"))
    with pytest.raises(ConfigError, match="no parameter 'pth'; did you mean 'path'"):
        registry("clients").create(parse_spec(f"local(path={qwen},pth=1)"))


def test_pickled_weights_and_foreign_code_are_not_opened(qwen, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(qwen, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(Skipped, match="needs safetensors weights"):
        Local(str(pickled)).ask([Query("a")], Meter())
    unchatty = tmp_path / "unchatty"
    shutil.copytree(qwen, unchatty)
    (unchatty / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        Local(str(unchatty)).ask([Query("a")], Meter())


def test_a_model_is_loaded_once_and_the_last_two_stay(tmp_path):
    folders = [save_qwen(tmp_path / str(seed), seed) for seed in range(3)]
    local_model.unload()
    first = local_model.load(str(folders[0]), "main", "cpu", "auto")
    local_model.load(str(folders[1]), "main", "cpu", "auto")
    assert (
        local_model.load(str(folders[0]), "main", "auto" if not torch.cuda.is_available() else "cpu", "auto") is first
    )
    local_model.load(str(folders[2]), "main", "cpu", "auto")
    assert local_model.load(str(folders[0]), "main", "cpu", "auto") is first
    assert len(local_model._loaded) == 2
    Local(str(folders[0])).close()
    assert not local_model._loaded
