"""LVLM-VA through a real checkpoint behind HTTP, and again from the recording alone.

The checkpoint is a tiny random-weight Qwen2.5-VL: it sees pictures and knows nothing, so its verdicts are noise. The
server is a small one of the tests' own that speaks chat completions and obeys `response_format`.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import harness
from harness.lvlm.client import Answer, Decoding, Meter, Query
from harness.lvlm.local import Local
from harness.store import Store

sys.path.insert(0, str(Path(__file__).parent / "harness" / "lvlm"))
from checkpoints import save_qwen
from misbehaving import Handler, Loopback, serving


class Backed:
    """A script that lets a local model answer."""

    def __init__(self, folder: Path):
        self.client = Local(str(folder), batch=1, device="cpu")
        self.lock = threading.Lock()

    def __call__(self, handler: Handler, call: int, body: dict[str, Any]) -> None:
        parts = [part for message in body["messages"] for part in _parts(message["content"])]
        images = tuple(_picture(p["image_url"]["url"]) for p in parts if p["type"] == "image_url")
        text = "\n".join(p["text"] for p in parts if p["type"] == "text")
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 64
        query = Query(text, images, schema=schema, decoding=Decoding(max_tokens=tokens))
        with self.lock:
            reply = self.client.ask([query], Meter())[0]
        text = reply.text if isinstance(reply, Answer) else "no answer"
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        handler.reply(
            json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        )


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _picture(url: str) -> np.ndarray:
    raw = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("tiny random-weight Qwen2.5-VL"))


def run(server: Loopback | str, results: Path) -> tuple[Any, dict[str, np.ndarray]]:
    url = server if isinstance(server, str) else server.url
    client = f"server(url={url},model=tiny-random,key_env='',retries=0,timeout=60)"
    row = f"lvlm_va@critic(client={client},style=one_call,size=56,max_answer=80)"
    harness.run(
        "quickstart",
        f"methods=['{row}']".replace("key_env=''", 'key_env=""'),
        "alignment.n=8",
        "alignment.segments.count=3",
        "recipes.base.epochs=2",
        "recipes.finetune.steps=10",
        seeds=1,
        results=str(results),
    )
    store = Store(results)
    ((folder, record),) = store.records()
    assert record.status.value == "done", record.reason  # type: ignore[union-attr]
    return record, store.predictions(folder, record)  # type: ignore[arg-type]


def test_a_run_over_http_and_its_replay_give_identical_masks_and_no_call(checkpoint: Path, tmp_path: Path) -> None:
    with serving(Backed(checkpoint)) as server:
        url = server.url
        record, arrays = run(server, tmp_path / "live")
        asked = len(server.calls)
    notes = record.audit["lvlm_train"]
    assert asked == notes["calls_made_now"] >= notes["asked"] > 0
    assert record.tracks["preregistered"].ledger["lvlm_calls/train"] == asked
    assert notes["failures"] == {}
    assert {0, 1} & set(arrays["masks/verdicts"].ravel().tolist())

    (tmp_path / "replayed").mkdir()
    shutil.copytree(tmp_path / "live" / "recordings", tmp_path / "replayed" / "recordings")
    again, replayed = run(url, tmp_path / "replayed")  # nothing listens there any more
    assert again.audit["lvlm_train"]["calls_made_now"] == 0
    assert again.tracks["preregistered"].ledger["lvlm_calls/train"] == asked
    assert set(arrays) == set(replayed)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], replayed[name], err_msg=name)
    assert again.tracks["preregistered"].metrics == record.tracks["preregistered"].metrics


def test_without_the_recording_the_dead_server_is_a_failed_cell_that_names_it(tmp_path: Path) -> None:
    from misbehaving import closed_port

    with pytest.raises(AssertionError, match=r"127\.0\.0\.1"):
        run(f"http://127.0.0.1:{closed_port()}/v1", tmp_path)
