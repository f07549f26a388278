"""The server client against a real server: `transformers serve` on loopback with a tiny random-weight checkpoint."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from checkpoints import WORDS, let_end_anywhere, save_qwen
from misbehaving import SCHEMA, closed_port

from harness.lvlm.client import Answer, Decoding, Meter, Query
from harness.lvlm.local import Local
from harness.lvlm.recorded import Recorded
from harness.lvlm.server import Server

NEEDED = ("fastapi", "uvicorn", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"transformers[serving] is not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not os.environ.get("VABENCH_TEST_SERVE"), reason="takes half a minute; VABENCH_TEST_SERVE=1"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, model name, log file) of a running server; no logits beyond the tokenizer, which it would not mask."""
    folder = let_end_anywhere(save_qwen(tmp_path_factory.mktemp("checkpoint"), vocabulary=WORDS))
    cache, log = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("log") / "serve.log"
    port = closed_port()
    code = "from transformers.cli.transformers import main; main()"
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=file,
            stderr=file,
            env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder), log
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(address, process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=2)
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


def test_the_same_pixels_arrive_as_in_the_local_client_and_an_ignored_schema_is_noticed(served, tmp_path):
    url, model, log = served
    client = Recorded(tmp_path, Server(url, model, key_env="", concurrency=2, timeout=60.0))
    pictures = [np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8) for seed in range(6)]
    decoding = Decoding(max_tokens=40)
    free = [Query("Which?", (image,), decoding=decoding) for image in pictures]
    meter = Meter()
    replies = client.ask([*free, Query("Which?", (pictures[0],), schema=SCHEMA, decoding=decoding)], meter)
    assert meter.used.calls == 7
    assert all(reply.usage.prompt_tokens > 0 and reply.usage.completion_tokens > 0 for reply in replies)
    here = [_said(reply) for reply in Local(model).ask(free, Meter())]
    there = [_said(reply) for reply in replies[:6]]
    # That server also writes out special tokens and the token that ended the text.
    assert all(two.startswith(one) for one, two in zip(here, there, strict=True)), (here, there)
    assert len(set(here)) > 2, here
    # Random weights: only a grammar could have made the last one valid, and this server has none.
    assert "response_format" in log.read_text()
    assert not isinstance(replies[6], Answer)


def _said(reply):
    """The ordinary characters of an answer (random bytes are mostly no characters), or the kind of failure."""
    return re.sub(r"<\|\w+\|>|\ufffd", "", reply.text) if isinstance(reply, Answer) else reply.kind
