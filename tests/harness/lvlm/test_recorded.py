"""Recordings: nothing is lost, nothing is asked or paid for twice, damage is noticed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from misbehaving import GOOD, SCHEMA, completion, serving

from harness.errors import ConfigError, DataError, VabenchError
from harness.lvlm.client import Answer, CapReached, Client, Failure, Meter, Query, Usage, ask_twice
from harness.lvlm.recorded import Recorded
from harness.lvlm.server import Server
from harness.lvlm.shelf import Entry, Shelf, to_line
from harness.lvlm_info import SERVER
from harness.registry import registry
from harness.spec import parse_spec


class Parrot(Client):
    """Answers with its name and the question; a question that says "fail" fails."""

    info = SERVER

    def __init__(self, name: str = "parrot"):
        self.name = name
        self.asked: list[str] = []

    @property
    def params(self) -> dict[str, Any]:
        return {"name": self.name}

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.name}

    def ask(self, queries, meter, on_reply=None):
        replies = []
        for k, query in enumerate(queries):
            meter.admit()
            self.asked.append(query.prompt)
            usage = Usage(1, 3, 2, 0.5)
            meter.book(usage)
            failed = "fail" in query.prompt
            replies.append(
                Failure("invalid", "as told", usage) if failed else Answer(f"{self.name}: {query.prompt}", usage=usage)
            )
            if on_reply is not None:
                on_reply(k, replies[-1])
        return replies


def questions(*texts):
    return [Query(text) for text in texts]


def test_an_answer_is_asked_once_and_replayed_with_its_usage_but_free(tmp_path):
    parrot = Parrot()
    first = Recorded(tmp_path, parrot).ask(questions("a", "b"), Meter())
    meter, handed = Meter(max_calls=0), []
    again = Recorded(tmp_path, parrot).ask(questions("b", "a"), meter, lambda k, reply: handed.append((k, reply)))
    assert parrot.asked == ["a", "b"]
    assert [reply.text for reply in again] == ["parrot: b", "parrot: a"]
    assert [reply.replayed for reply in (*first, *again)] == [False, False, True, True]
    assert again[0].usage == first[1].usage == Usage(1, 3, 2, 0.5)
    assert meter.used == Usage()
    assert handed == list(enumerate(again))


def test_equal_questions_of_one_call_are_one_call(tmp_path):
    parrot, meter, handed = Parrot(), Meter(), {}
    replies = Recorded(tmp_path, parrot).ask(questions("a", "b", "a", "fail", "fail"), meter, handed.__setitem__)
    assert parrot.asked == ["a", "b", "fail"]
    assert [reply.replayed for reply in replies[:3]] == [False, False, True]
    assert isinstance(replies[4], Failure)
    assert (replies[3].usage.calls, replies[4].usage.calls, meter.used.calls) == (1, 0, 3)
    assert handed == dict(enumerate(replies))


def test_failures_are_not_kept_and_a_second_try_is_its_own_question(tmp_path):
    parrot = Parrot()
    recorded = Recorded(tmp_path, parrot)
    recorded.ask(questions("fail"), Meter())
    recorded.ask(questions("fail"), Meter())
    assert parrot.asked == ["fail"] * 2
    _, asked_again = ask_twice(recorded, questions("fail", "ok"), Meter())
    assert asked_again == 1
    assert parrot.asked[2:] == ["fail", "ok", "fail"]


def test_offline_replay_knows_its_model_and_names_what_is_missing(tmp_path):
    Recorded(tmp_path, Parrot()).ask(questions("a", "b"), Meter())
    alone = registry("clients").create(parse_spec(f"recorded(folder={tmp_path})"))
    assert alone.identity == {"model": "parrot"}
    assert [reply.text for reply in alone.ask(questions("b"), Meter())] == ["parrot: b"]
    assert alone.missing(questions("a", "x", "y", "x")) == 2
    with pytest.raises(DataError, match="2 of 3 questions have no recorded answer"):
        alone.ask(questions("a", "x", "y"), Meter())
    with pytest.raises(DataError, match="no recording in"):
        Recorded(tmp_path / "empty").ask(questions("a"), Meter())


def test_of_several_models_one_has_to_be_named(tmp_path):
    for name in ("parrot", "macaw"):
        Recorded(tmp_path, Parrot(name)).ask(questions("a"), Meter())
    with pytest.raises(
        ConfigError, match=r"2 model\(s\) and model=\.\.\. has to say which: model=macaw \| model=parrot"
    ):
        Recorded(tmp_path).ask(questions("a"), Meter())
    (reply,) = Recorded(tmp_path, model="mac").ask(questions("a"), Meter())
    assert reply.text == "macaw: a"
    with pytest.raises(ConfigError, match="fits 0"):
        _ = Recorded(tmp_path, model="crow").identity
    with pytest.raises(ValueError, match="one of the two"):
        Recorded(tmp_path, Parrot(), model="crow")


def test_torn_flipped_and_foreign_lines_are_ignored_and_counted(tmp_path):
    Recorded(tmp_path, Parrot()).ask(questions("a", "b", "c"), Meter())
    (file,) = tmp_path.glob("*.jsonl")
    header, a, b, c = file.read_bytes().splitlines(keepends=True)
    flipped = b.replace(b"parrot", b"pbrrot")
    assert flipped != b
    file.write_bytes(header + a + flipped + b'{"foreign": 1}\nnoise\n\xff\xfe\n' + c[: len(c) // 2])
    parrot = Parrot()
    recorded = Recorded(tmp_path, parrot)
    assert recorded.damaged == 5
    replies = recorded.ask(questions("a", "b", "c"), Meter())
    assert parrot.asked == ["b", "c"]
    assert [reply.replayed for reply in replies] == [True, False, False]
    assert Shelf(tmp_path).refresh().damaged == 5  # a fresh reader sees the same, and the new answers
    assert Recorded(tmp_path).missing(questions("a", "b", "c")) == 0


def test_an_answer_is_on_disk_before_it_is_used(tmp_path):
    def look(k, reply):
        lines = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
        assert reply.text in [line.get("text") for line in lines]

    Recorded(tmp_path, Parrot()).ask(questions("a", "b"), Meter(), look)


def test_a_line_that_another_process_is_writing_is_read_when_it_is_whole(tmp_path):
    query, shelf = Query("a"), Shelf(tmp_path)
    entry = Entry(query.key({"model": "m"}), "text", Usage(1), 5.0)
    content = {"key": entry.key, "text": entry.text, "usage": entry.usage.as_dict(), "at": entry.at}
    line = to_line(content)
    other = tmp_path / "other.jsonl"
    other.write_bytes(line[:30])
    assert shelf.refresh().get(entry.key) is None
    with open(other, "ab") as file:
        file.write(line[30:])
    assert shelf.refresh().get(entry.key) == entry
    assert shelf.damaged == 0
    earlier = {**content, "text": "earlier", "at": 4.0}
    (tmp_path / "third.jsonl").write_bytes(to_line(earlier))
    assert shelf.refresh().get(entry.key).text == "earlier"  # the same choice whoever reads, in whatever order
    other.unlink()
    (tmp_path / "third.jsonl").unlink()
    assert shelf.refresh().get(entry.key) is None


def _ask_in_a_process(folder, texts):
    Recorded(folder, Parrot()).ask(questions(*texts), Meter())


def test_no_two_processes_write_one_file_and_each_profits_from_the_other(tmp_path):
    mine = Recorded(tmp_path, Parrot())
    mine.ask(questions("a"), Meter())
    context = multiprocessing.get_context("fork")  # a forked child holds its parent's index and must not use its file
    child = context.Process(target=_ask_in_a_process, args=(tmp_path, ["a", "b"]))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert mine.ask(questions("b"), Meter())[0].replayed
    mine.ask(questions("c"), Meter())
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert mine.of.asked == ["a", "c"]


def server_of(url, **settings):
    made = Server(url, "m", key_env="", retries=1, timeout=5.0, **{"concurrency": 2, **settings})
    made.pause = 0.01
    return made


def verdicts(count):
    return [Query(f"question {k}", schema=SCHEMA) for k in range(count)]


def test_a_server_that_dies_after_some_answers_leaves_them_and_only_the_rest_is_asked(tmp_path):
    alive = True

    def script(handler, call, body):
        if not alive or call >= 4:
            handler.reset()
        else:
            handler.reply(completion(GOOD))

    with serving(script) as server, pytest.raises(VabenchError, match="no longer answers"):
        Recorded(tmp_path, server_of(server.url)).ask(verdicts(10), Meter())
    with serving(lambda handler, call, body: handler.reply(completion(GOOD))) as server:
        meter = Meter()
        replies = Recorded(tmp_path, server_of(server.url)).ask(verdicts(10), meter)
    assert sum(reply.replayed for reply in replies) == 4
    assert len(server.calls) == meter.used.calls == 6


def test_a_cap_stops_and_a_higher_one_goes_on_and_nothing_is_billed_twice(tmp_path):
    with serving(lambda handler, call, body: handler.reply(completion(GOOD))) as server:
        with pytest.raises(CapReached):
            Recorded(tmp_path, server_of(server.url)).ask(verdicts(9), Meter(max_calls=5))
        assert len(server.calls) == 5
        replies = Recorded(tmp_path, server_of(server.url)).ask(verdicts(9), Meter(max_calls=5))
        assert len(server.calls) == 9
        assert [reply.replayed for reply in replies].count(True) == 5
        Recorded(tmp_path, server_of(server.url)).ask(verdicts(9), Meter(max_calls=0))
    prompts = [body["messages"][0]["content"] for body in server.calls]
    assert len(prompts) == len(set(prompts)) == 9


def test_a_killed_process_loses_only_what_was_in_flight(tmp_path):
    code = """
        import sys
        from harness.lvlm.client import Meter, Query
        from harness.lvlm.recorded import Recorded
        from harness.lvlm.server import Server
        from harness.errors import VabenchError
        client = Recorded(sys.argv[2], Server(sys.argv[1], "m", key_env="", concurrency=1))
        client.ask([Query(f"question {k}") for k in range(8)], Meter())
    """

    def script(handler, call, body):
        if call == 3:
            time.sleep(60)  # the fourth answer never comes
        handler.reply(completion("fine"))

    with serving(script) as server:
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), server.url, str(tmp_path)])
        deadline = time.monotonic() + 60
        while len(server.calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert len(server.calls) == 4
        replies = Recorded(tmp_path, server_of(server.url)).ask([Query(f"question {k}") for k in range(8)], Meter())
    assert [reply.replayed for reply in replies] == [True] * 3 + [False] * 5
    assert len(server.calls) == 4 + 5


def test_a_folder_that_cannot_be_written_is_said_before_more_is_asked(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    parrot = Parrot()
    with pytest.raises(DataError, match="cannot write the recording"):
        Recorded(Path(blocked) / "below", parrot).ask(questions("a", "b"), Meter())
    assert parrot.asked == ["a"]
