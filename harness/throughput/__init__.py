"""Throughput by method and phase, measured so that a rival would accept it (docs/throughput.md)."""
