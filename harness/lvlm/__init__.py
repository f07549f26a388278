"""Talking to a vision-language model: one client contract, three back ends (local, server, recorded)."""
