"""One decoding step for a batch whose rows differ in grammar, temperature and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.lvlm.client import Query

if TYPE_CHECKING:
    from torch import Tensor


def row_seed(query: Query) -> int:
    """Seed of a question's own random numbers: its content decides, never its place in a batch."""
    digest = hashlib.sha256(json.dumps(query.content, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class RowwiseDecoding:
    """A logits processor for greedy `generate`: grammar masks, then Gumbel noise where a row has a temperature.

    The largest of (score / temperature + Gumbel noise) is an exact draw from the softmax at that temperature, so every
    row samples from its own stream and the batch around it changes nothing.

    Args:
        grammars: xgrammar's CompiledGrammar per row, or None for free text. queries: the rows' questions.
        vocabulary: width of the logits. words: entries of the tokenizer; ids beyond them are never chosen.
    """

    def __init__(self, grammars: Sequence[Any], queries: Sequence[Query], vocabulary: int, words: int):
        import torch
        import xgrammar

        self.words = words
        self.vocabulary = vocabulary
        self.matchers = [None if grammar is None else xgrammar.GrammarMatcher(grammar) for grammar in grammars]
        self.bits: Tensor = xgrammar.allocate_token_bitmask(len(self.matchers), vocabulary)
        self.temperatures = [query.decoding.temperature for query in queries]
        self.streams = [torch.Generator().manual_seed(row_seed(query)) for query in queries]
        self.started = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, vocabulary] -> float32 scores with -inf where a token is not allowed."""
        import torch
        import xgrammar

        if scores.shape[1] != self.vocabulary:
            raise RuntimeError(f"logits are {scores.shape[1]} wide, but the model's head says {self.vocabulary}")
        scores = scores.float().clone()
        scores[:, self.words :] = -torch.inf
        if any(matcher is not None for matcher in self.matchers):
            self._advance(input_ids)
            xgrammar.apply_token_bitmask_inplace(scores, self.bits.to(scores.device))
        for row, temperature in enumerate(self.temperatures):
            if temperature > 0:
                draw = torch.empty(self.vocabulary).exponential_(generator=self.streams[row])
                scores[row] = scores[row] / temperature - draw.log().to(scores.device)
        return scores

    def _advance(self, input_ids: Tensor) -> None:
        """Feed every open matcher its row's last token and mark what may follow."""
        import xgrammar

        last = input_ids[:, -1].tolist()
        xgrammar.reset_token_bitmask(self.bits)
        for row, matcher in enumerate(self.matchers):
            if matcher is None or matcher.is_terminated():
                continue
            if self.started and not matcher.accept_token(last[row]):
                raise RuntimeError(f"token {last[row]} was chosen although the grammar of its answer forbids it")
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(self.bits, row)
        self.started = True
