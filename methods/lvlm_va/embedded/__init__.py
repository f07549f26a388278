"""The embedded critic: a vision-language model of a million parameters for the decoy suites, with its training."""
