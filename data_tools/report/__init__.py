"""The dataset report: report.html shows the images as training uses them, report.json has the same data."""

from data_tools.report.page import HTML_FILE, JSON_FILE, write_report

__all__ = ["HTML_FILE", "JSON_FILE", "write_report"]
