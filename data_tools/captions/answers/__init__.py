"""Answers of models read by their structure; see extract.py."""

from data_tools.captions.answers.extract import extract_description
from data_tools.captions.answers.unusable import UnusableAnswer, find_markup

__all__ = ["UnusableAnswer", "extract_description", "find_markup"]
