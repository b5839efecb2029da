"""The command line: `app` holds what commands share, each command has a module, and `main` imports them all."""
