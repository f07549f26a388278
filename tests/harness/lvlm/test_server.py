"""The server client against a loopback server that fails in every way that we know."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import tracemalloc

import numpy as np
import pytest
from misbehaving import GOOD, SCHEMA, answer, closed_port, completion, serving
from PIL import Image

from harness.errors import ConfigError, VabenchError
from harness.lvlm.attempt import is_strict, retry_after
from harness.lvlm.client import Answer, CapReached, Decoding, Failure, Meter, Query
from harness.lvlm.server import Server
from harness.registry import registry
from harness.spec import parse_spec


def questions(count, schema=SCHEMA):
    return [Query(f"question {k}", schema=schema) for k in range(count)]


def client(url, **settings):
    made = Server(url, "m", **{"retries": 3, "timeout": 5.0, "concurrency": 4, "key_env": "", **settings})
    made.pause = 0.02
    return made


def ask(url, queries=None, meter=None, **settings):
    return client(url, **settings).ask(queries or questions(1), meter or Meter())


def test_a_question_arrives_whole_and_its_answer_comes_back_parsed_and_priced():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    query = Query("Which?", (image,), "Be brief.", SCHEMA, Decoding(77, 0.5, 9))
    meter = Meter()
    with serving(answer()) as server:
        (reply,) = ask(server.url, [query], meter, price_in=2.0, price_out=10.0)
    (body,) = server.calls
    assert isinstance(reply, Answer)
    assert reply.value == {"verdict": "spurious"}
    assert not reply.replayed
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 77, 0.5, 9)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    picture, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "Which?"}
    png = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}
    assert (meter.used.calls, meter.used.prompt_tokens, meter.used.completion_tokens) == (1, 11, 5)
    assert meter.used.price == pytest.approx((11 * 2 + 5 * 10) / 1e6)
    assert reply.usage == meter.used


def test_extra_fields_replace_and_remove_fields_of_the_body():
    spec = "server(url=http://127.0.0.1:1/v1,model=m,extra={max_tokens: null, max_completion_tokens: 9})"
    made = registry("clients").create(parse_spec(spec))
    with serving(answer()) as server:
        made.url, made.key_env = server.url, ""
        made.ask(questions(1), Meter())
    assert server.calls[0]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.calls[0]
    assert made.identity == {"model": "m", "extra": {"max_tokens": None, "max_completion_tokens": 9}}


def test_many_questions_are_in_flight_but_never_more_than_the_bound():
    now, most = 0, 0

    def script(handler, call, body):
        nonlocal now, most
        with handler.server.lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.05)
        with handler.server.lock:
            now -= 1
        handler.reply(completion(body["messages"][0]["content"]))

    with serving(script) as server:
        replies = ask(server.url, questions(12, schema=None), concurrency=3)
    assert [reply.text for reply in replies] == [f"question {k}" for k in range(12)]
    assert 2 <= most <= 3


def test_it_works_inside_a_running_event_loop():
    async def notebook(url):
        return ask(url)

    with serving(answer()) as server:
        (reply,) = asyncio.run(notebook(server.url))
    assert isinstance(reply, Answer)


def test_a_refused_connection_ends_the_run_in_one_sentence():
    meter = Meter()
    with pytest.raises(VabenchError, match=r"127\.0\.0\.1.* cannot be reached \(3 attempts") as caught:
        ask(f"http://127.0.0.1:{closed_port()}/v1", questions(20), meter, retries=2, concurrency=1)
    assert meter.used.calls == 3
    assert caught.value.__cause__ is None


def test_retry_after_is_waited_for_by_every_question():
    def script(handler, call, body):
        if call == 0:
            handler.reply(b'{"error": "slow down"}', 429, Retry_After="1")
        else:
            handler.reply(completion(GOOD))

    meter = Meter()
    with serving(script) as server:
        replies = ask(server.url, questions(3), meter, concurrency=1)
    assert all(isinstance(reply, Answer) for reply in replies)
    assert server.times[1] - server.times[0] >= 1.0
    assert (meter.used.calls, meter.used.retries, len(server.calls)) == (4, 1, 4)
    assert (replies[0].usage.calls, replies[0].usage.retries) == (2, 1)


def test_a_server_that_asks_for_more_than_our_patience_ends_the_run_at_once():
    def script(handler, call, body):
        handler.reply(b"quota", 429, Retry_After="86400")

    start = time.monotonic()
    with serving(script) as server, pytest.raises(VabenchError, match=r"asks to wait 86400 s"):
        ask(server.url, questions(9), concurrency=1)
    assert len(server.calls) == 1
    assert time.monotonic() - start < 5


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert retry_after("7", 0.0) == 7.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50.0) == 10.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 90.0) == 0.0
    assert [retry_after(text, 0.0) for text in (None, "", "soon", "nan", "inf")] == [None] * 5


def test_a_server_error_is_tried_again():
    def script(handler, call, body):
        if call < 2:
            handler.reply(b"<h1>oops</h1>", 500, "text/html")
        else:
            handler.reply(completion(GOOD))

    meter = Meter()
    with serving(script) as server:
        (reply,) = ask(server.url, meter=meter)
    assert isinstance(reply, Answer)
    assert (meter.used.calls, meter.used.retries) == (3, 2) == (len(server.calls), 2)


def test_a_question_that_always_meets_an_error_fails_alone():
    def script(handler, call, body):
        if "question 1" in str(body["messages"]):
            handler.reply(b"<h1>oops</h1>\x00", 503, "text/html")
        elif "question 2" in str(body["messages"]):
            handler.reply(b'{"error": "image too large"}', 400)
        else:
            handler.reply(completion(GOOD))

    with serving(script) as server:
        replies = ask(server.url, questions(4), retries=2)
    assert [getattr(reply, "kind", "answer") for reply in replies] == ["answer", "server", "refused", "answer"]
    assert replies[1].usage.calls == 3
    assert replies[2].usage.calls == 1
    assert "image too large" in replies[2].message
    assert "\x00" not in replies[1].message


@pytest.mark.parametrize("drip", ["body", "error page"])
def test_a_slow_drip_meets_the_total_time_out(drip):
    def script(handler, call, body):
        if drip == "body":
            handler.start(10_000)
        else:
            handler.send_response(500)
            handler.send_header("Content-Length", "10000")
            handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    start = time.monotonic()
    with serving(script) as server:
        (reply,) = ask(server.url, timeout=0.4, retries=1)
    assert isinstance(reply, Failure)
    assert reply.kind == "timeout"
    assert reply.usage.calls == 2
    assert time.monotonic() - start < 4


def test_truncated_json_wrong_schema_and_unknown_keys_are_invalid_answers_not_errors():
    texts = ['{"verdict": "spur', '{"verdict": "maybe"}', '{"verdict": "spurious", "cluster_9": "spurious"}', "[]", ""]
    with serving(lambda handler, call, body: handler.reply(completion(texts[call]))) as server:
        replies = ask(server.url, questions(5), concurrency=1)
    assert [reply.kind for reply in replies] == ["invalid"] * 5
    assert len(server.calls) == 5  # paid for and not usable: no silent retry of the same question


def test_an_answer_cut_off_by_the_token_limit_is_truncated_even_if_it_parses():
    with serving(lambda handler, call, body: handler.reply(completion(GOOD, "length"))) as server:
        (reply,) = ask(server.url)
    assert isinstance(reply, Failure)
    assert reply.kind == "truncated"
    assert reply.usage.completion_tokens == 5


@pytest.mark.parametrize("body", [completion(GOOD)[:40], b"<html>login</html>", b"[]", b'{"choices": []}', b"{}"])
def test_a_body_that_is_no_completion_is_tried_again(body):
    with serving(lambda handler, call, _: handler.reply(completion(GOOD) if call else body)) as server:
        (reply,) = ask(server.url)
    assert isinstance(reply, Answer)
    assert reply.usage.calls == len(server.calls) == 2


def test_html_and_control_characters_are_data():
    said = 'a\x00b\x1b[31m\r\n<script>alert("x")</script>\t\x7f\ud800'
    with serving(answer(said)) as server:
        (reply,) = ask(server.url, questions(1, schema=None))
    assert reply.text == 'ab[31m\n<script>alert("x")</script>\t'
    schema = {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]}
    with serving(answer('{"why": "<b>&amp;\\u0000</b>"}')) as server:
        (reply,) = ask(server.url, questions(1, schema=schema))
    assert reply.value == {"why": "<b>&amp;\x00</b>"}
    assert server.calls[0]["response_format"]["json_schema"]["strict"] is False
    with serving(answer('{"why": "\\ud800"}')) as server:
        (reply,) = ask(server.url, questions(1, schema=schema))
    assert reply.kind == "invalid"


@pytest.mark.parametrize("status", [200, 500])
def test_of_an_answer_of_ten_megabytes_only_the_start_is_read(status):
    size = 10 * 2**20

    def script(handler, call, body):
        handler.send_response(status)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        for _ in range(160):
            handler.wfile.write(b"x" * 65_536)

    with serving(script) as server:
        ask(server.url, retries=0)  # imports and pools are paid for before measuring
        tracemalloc.start()
        (reply,) = ask(server.url, retries=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(reply, Failure)
    assert reply.kind == ("too long" if status == 200 else "server")
    assert len(reply.message) < 300
    assert peak < size / 2


def test_an_answer_of_more_characters_than_allowed_is_a_failure():
    with serving(answer("x" * 70_000)) as server:
        (reply,) = ask(server.url, questions(1, schema=None))
    assert reply.kind == "too long"


def test_a_connection_that_dies_in_the_middle_of_a_body_is_tried_again():
    def script(handler, call, body):
        if call == 0:
            handler.start(1000)
            handler.wfile.write(completion(GOOD)[:50])
            handler.wfile.flush()
            time.sleep(0.05)
            handler.reset()
        elif call == 1:
            handler.start(1000)  # promises more than it sends
            handler.wfile.write(completion(GOOD))
            handler.close_connection = True
        else:
            handler.reply(completion(GOOD))

    with serving(script) as server:
        (reply,) = ask(server.url)
    assert isinstance(reply, Answer)
    assert reply.usage.calls == len(server.calls) == 3


def test_a_server_that_dies_ends_the_run_after_the_answers_that_had_arrived():
    def script(handler, call, body):
        if call < 5:
            handler.reply(completion(GOOD))
        else:
            handler.reset()

    arrived = []
    with serving(script) as server, pytest.raises(VabenchError, match=r"no longer answers .* 5 answers of this call"):
        client(server.url, retries=1, concurrency=1).ask(questions(50), Meter(), lambda k, reply: arrived.append(reply))
    assert sum(isinstance(reply, Answer) for reply in arrived) == 5
    assert len(server.calls) == 5 + 3 * 2  # three silent questions, two attempts each, then no more


def test_a_cap_is_never_passed_and_what_was_in_flight_is_handed_over():
    def script(handler, call, body):
        time.sleep(0.05)
        handler.reply(completion(GOOD))

    arrived = []
    meter = Meter(max_calls=6)
    with serving(script) as server, pytest.raises(CapReached, match="cap on calls"):
        client(server.url).ask(questions(20), meter, lambda k, reply: arrived.append(k))
    assert len(server.calls) == meter.used.calls == len(arrived) == 6


def test_retries_count_against_the_cap():
    meter = Meter(max_calls=2)
    with serving(lambda handler, call, body: handler.reply(b"", 500)) as server, pytest.raises(CapReached):
        ask(server.url, meter=meter)
    assert len(server.calls) == meter.used.calls == 2


@pytest.mark.parametrize(("status", "words"), [(401, "refuses a request without a key"), (404, "knows no such model")])
def test_a_refused_key_and_an_unknown_model_end_the_run(status, words):
    with serving(lambda handler, call, body: handler.reply(b"no", status)) as server:
        with pytest.raises(ConfigError, match=words):
            ask(server.url, questions(30), concurrency=1)
        assert len(server.calls) == 1


def test_an_error_while_writing_down_stops_asking():
    def script(handler, call, body):
        time.sleep(0.02)
        handler.reply(completion(GOOD))

    def full(k, reply):
        raise OSError("disk full")

    with serving(script) as server:
        with pytest.raises(OSError, match="disk full"):
            client(server.url, concurrency=2).ask(questions(100), Meter(), full)
        assert len(server.calls) < 10


@pytest.mark.parametrize(
    "settings",
    [{"url": "http://user:pw@host/v1"}, {"url": "ftp://host"}, {"url": "http://h/v1?key=1"}, {"concurrency": 0}],
)
def test_impossible_settings_are_refused_without_repeating_a_secret(settings):
    with pytest.raises(ValueError, match=r"url|at least") as caught:
        Server(**{"url": "http://h/v1", "model": "m", **settings})
    assert "pw" not in str(caught.value)


def test_strict_is_claimed_only_of_closed_schemas():
    assert is_strict(SCHEMA)
    assert not is_strict({"type": "object", "properties": {"a": {}}, "required": ["a"]})
    assert not is_strict({"type": "array", "items": {"type": "object", "properties": {}}})
