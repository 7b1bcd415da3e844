"""Prompt files in all their forms: one module a form, and one list of them (forms.py)."""
