"""For continuous integration: tables between markers in a page, a comment, a workflow."""
