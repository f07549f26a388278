"""Metrics as pure functions on numpy arrays: numbers out, no torch, no files, no hidden state.

`groups` who is classified well, `calibration` how sure the model is, `reliance` what it looks at and reacts to,
`fidelity` how good verdicts and correction masks are.
"""
