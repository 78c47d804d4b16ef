"""Two folders of label maps -> one table."""
