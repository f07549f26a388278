"""Reads records and turns them into tables. Knows no method by name and imports no torch."""
