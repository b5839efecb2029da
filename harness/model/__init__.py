"""Plain records, which import nothing else of the harness."""
