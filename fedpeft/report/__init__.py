"""A run as one self-contained HTML page: what was reached, what it cost, in which units."""

from fedpeft.report.page import write

__all__ = ["write"]
