"""The adversary: it hunts for an input on which a fast twin differs from its reference."""
