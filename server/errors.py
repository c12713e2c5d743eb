"""Exceptions that end a command with one line. Imports nothing, so that the command line starts fast."""


class CommandError(Exception):
    """A command cannot do what was asked. The message is one line for the terminal (exit code 2)."""


class SettingsError(CommandError):
    """A flag or an environment variable is wrong."""
