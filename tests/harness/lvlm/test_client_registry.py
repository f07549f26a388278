"""Clients by the registry's door, as a mask source opens them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from misbehaving import answer, serving

from harness.errors import ConfigError
from harness.lvlm.client import Meter, Query
from harness.lvlm.recorded import Recorded
from harness.registry import registry
from harness.spec import parse_spec


def test_a_nested_spec_builds_a_recorded_server_client(tmp_path):
    with serving(answer("yes")) as server:
        spec = parse_spec(f"recorded(of=server(url={server.url},model=m,key_env=''),folder={tmp_path})")
        client = registry("clients").create(spec)
        (reply,) = client.ask([Query("q")], Meter())
        wrapped = Recorded(tmp_path, registry("clients").create(spec.params["of"]))
        (again,) = wrapped.ask([Query("q")], Meter(max_calls=0))
    assert (reply.text, reply.replayed, again.text, again.replayed) == ("yes", False, "yes", True)
    assert client.params == {"of": {"name": "server", "params": {"model": "m"}}}
    with pytest.raises(ConfigError, match=r"url is a base address"):
        registry("clients").create(parse_spec("server(url=nowhere,model=m)"))


def test_metadata_and_constructors_load_no_torch(tmp_path):
    code = (
        "import sys; from harness.registry import registry; from harness.spec import parse_spec\n"
        "clients = registry('clients'); assert {'local', 'server', 'recorded'} <= set(clients.names())\n"
        "assert not clients.broken()\n"
        "clients.create(parse_spec('recorded(of=local(path=/x),folder=/y)'))\n"
        "clients.create(parse_spec('server(url=http://h/v1,model=m)'))\n"
        "loaded = {'torch', 'transformers', 'openai', 'xgrammar'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
