"""Blind vote between variants that the scores cannot distinguish: a local page and a sequential test."""
