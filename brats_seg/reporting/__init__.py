"""Figures, the report page, the page to look at a case, what a terminal shows."""
