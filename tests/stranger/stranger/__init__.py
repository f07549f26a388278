"""Metadata of a third party's components."""

from harness.method import MethodInfo
from harness.suite import SuiteInfo
from harness.supervision import Supervision

HEAD_ONLY = MethodInfo(
    name="head_only",
    summary="refit the last layer on class-balanced batches",
    factory="stranger.head_only:HeadOnly",
    citation="the tests of vabench",
    supervision=Supervision.LABELS,
)
CRASH = MethodInfo(
    name="crash",
    summary="takes its whole process down, as running out of memory does",
    factory="stranger.crash:Crash",
    citation="the tests of vabench",
    supervision=Supervision.LABELS,
)
STRIPED_DIGITS = SuiteInfo(
    name="striped_digits",
    summary="scanned digits with a bright column that tells the class",
    factory="stranger.striped_digits:StripedDigits",
    source="synthetic",
    version="1",
    licence="BSD-3-Clause (scikit-learn's digits)",
    citation="the tests of vabench",
)
