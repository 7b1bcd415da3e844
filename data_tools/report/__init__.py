"""The dataset's report: one HTML page that shows what the model will see, and its JSON twin."""

from data_tools.report.page import HTML_FILE, JSON_FILE, write_report

__all__ = ["HTML_FILE", "JSON_FILE", "write_report"]
