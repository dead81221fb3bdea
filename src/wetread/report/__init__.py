"""What people look at: the table of findings, the page with pictures, and the preview."""

from wetread.report.page import write_page
from wetread.report.preview import write_preview
from wetread.report.table import write_csv, write_scores, write_table
from wetread.report.write import write_report

__all__ = ["write_csv", "write_page", "write_preview", "write_report", "write_scores", "write_table"]
