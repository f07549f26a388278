"""Metadata of the vision-language model back ends; importing it loads no torch and opens nothing."""

from __future__ import annotations

from harness.lvlm.client import ClientInfo

LOCAL = ClientInfo(
    "local",
    "a model in this process (transformers), batched, JSON constrained by the schema's grammar",
    "harness.lvlm.local:Local",
    "Wolf et al., EMNLP 2020; Dong et al., arXiv:2411.15100 (XGrammar)",
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
