"""The audit of another library's losses: what is wrong by its own documentation, and the code that shows it."""
