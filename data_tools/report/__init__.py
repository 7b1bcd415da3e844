"""The dataset's report: one HTML page that shows what the model will see, and its JSON twin."""

from data_tools.report.page import HTML, JSON, write

__all__ = ["HTML", "JSON", "write"]
