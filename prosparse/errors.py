"""What a user can be told. Every message says what, where (file and key), expected and got, and what to do.

The command line turns `UserError` into exit status 2 and `MachineError` into 1, without a traceback.
"""

from __future__ import annotations


class ProsparseError(Exception):
    """Base of every error that prosparse raises on purpose."""


class UserError(ProsparseError, ValueError):
    """The caller's input is wrong: a value, a file, a combination of options."""


class ConfigError(UserError):
    """A config.json, or a setting derived from it, that cannot be run."""


class CheckpointError(UserError):
    """Weights that are missing, malformed, or do not fit the config."""


class TokenizerError(UserError):
    """Tokenizer files that are missing or do not fit the model."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class UnsupportedError(UserError, NotImplementedError):
    """Valid input that prosparse does not handle; the message lists what it does."""


class MachineError(ProsparseError, RuntimeError):
    """This machine cannot do it: no device, not enough memory, a failed write."""
