"""Python's TOML parser, or the package tomli where Python has none, which is before 3.11."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
