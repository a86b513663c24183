"""The papers' tables and our own from one command: suites give rows, rows are kept as they come, a page shows them."""
