"""Metadata of the vision-language model back ends; importing it loads no torch and opens nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientInfo:
    """Metadata of a back end, readable without loading it (registry kind `clients`)."""

    name: str
    summary: str
    factory: str  # "package.module:Class"
    citation: str = ""
    file_params: tuple[str, ...] = ()  # parameters that name a file or folder whose content decides the answers


LOCAL = ClientInfo(
    "local",
    "a model in this process (transformers), batched, JSON constrained by the schema's grammar",
    "harness.lvlm.local:Local",
    "Wolf et al., EMNLP 2020; Dong et al., arXiv:2411.15100 (XGrammar)",
    file_params=("path",),
)
SERVER = ClientInfo(
    "server",
    "any OpenAI-compatible endpoint: vLLM, SGLang, transformers serve, hosted",
    "harness.lvlm.server:Server",
)
RECORDED = ClientInfo(
    "recorded",
    "another client's answers, written down as they arrive and never asked for twice; alone it replays offline",
    "harness.lvlm.recorded:Recorded",
)
