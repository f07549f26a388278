"""The key of a hosted model goes to its server and nowhere else."""

from __future__ import annotations

import logging
import traceback

import pytest
from misbehaving import closed_port, completion, serving

from harness.errors import VabenchError
from harness.lvlm.client import Meter, Query
from harness.lvlm.recorded import Recorded
from harness.lvlm.server import Server

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def key(monkeypatch, caplog):
    monkeypatch.setenv("VABENCH_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)


def client(url, folder, **settings):
    made = Server(url, "m", key_env="VABENCH_TEST_KEY", retries=1, timeout=2.0, **settings)
    made.pause = 0.01
    return Recorded(folder, made)


def everything_said(error):
    """An error with its causes and contexts, as text and as representation."""
    said = "".join(traceback.format_exception(error))
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        said += repr(error) + repr(vars(error))
        error = error.__cause__ or error.__context__
    return said


def files_of(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_the_key_is_sent_and_stays_out_of_files_logs_and_representations(key, tmp_path, caplog, capfd):
    def echo(handler, call, body):
        handler.reply(completion(f"your header was {handler.headers['Authorization']}"))

    with serving(echo) as server:
        recorded = client(server.url, tmp_path)
        (reply,) = recorded.ask([Query("q")], Meter())
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert reply.text == "your header was Bearer ***"
    assert files_of(tmp_path)
    assert KEY.encode() not in files_of(tmp_path)
    made = recorded.of
    shown = repr((made, vars(made), made.params, made.identity, made._endpoint(), recorded.params, reply))
    out = capfd.readouterr()
    assert KEY not in shown + caplog.text + out.out + out.err


@pytest.mark.parametrize("fault", ["401", "404", "429", "500", "reset", "closed"])
def test_no_error_repeats_the_key(key, tmp_path, caplog, fault):
    def script(handler, call, body):
        if fault == "reset":
            handler.reset()
        else:
            page = f"wrong key {handler.headers['Authorization']} ".encode() * 200
            handler.reply(page, int(fault), Retry_After="9999" if fault == "429" else "0")

    said = ""
    with serving(script) as server:
        url = f"http://127.0.0.1:{closed_port()}/v1" if fault == "closed" else server.url
        try:
            (reply,) = client(url, tmp_path).ask([Query("q")], Meter())
            said = repr(reply)
        except VabenchError as error:
            said = everything_said(error)
    assert "HTTP" in said or "reached" in said
    assert KEY not in said + caplog.text
    assert KEY[:12] not in said
    assert KEY.encode() not in files_of(tmp_path)
