"""Reading JSON that others wrote: every fault names the file, the key, what was expected and what was there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingFileError, UserError

MAX_JSON_BYTES = 100 * 2**20  # the index of the largest public checkpoint is below 20 MB
REQUIRED: Any = object()  # as default: the key must be there


def read_json_object(path: Path, error: type[UserError] = ConfigError) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        error: what to raise for contents that are wrong.

    Raises:
        MissingFileError: no such file.
        error: it is a folder, cannot be read, or does not hold one JSON object with unique keys.
    """
    try:
        if path.is_dir():
            raise error(f"{path}: is a folder, expected a JSON file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise error(f"{path}: {path.stat().st_size} bytes, expected a JSON file of at most {MAX_JSON_BYTES}")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as fault:
        raise error(f"{path}: not UTF-8 text (byte {fault.start}); download the file again") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}; check its permissions") from None
    return parse_json_object(text, str(path), error)


def parse_json_object(text: str, where: str, error: type[UserError]) -> dict[str, Any]:
    """The object in a JSON text; `where` is named in messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise error(f"{where}: key {next(n for n in names if names.count(n) > 1)!r} appears twice; remove one")
        return found

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as fault:
        line = f"line {fault.lineno}, column {fault.colno}"
        raise error(f"{where}: not valid JSON at {line}: {fault.msg}; download the file again") from None
    except RecursionError:
        raise error(f"{where}: JSON nested too deeply; this is not a file of a model") from None
    except ValueError as fault:
        if isinstance(fault, UserError):
            raise
        raise error(f"{where}: a number has too many digits; this is not a file of a model") from None
    if not isinstance(data, dict):
        raise error(f"{where}: expected a JSON object, got {show(data)}")
    return data


def show(value: Any) -> str:
    """A JSON value for a message: short, with its type where that is the point."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a huge number"
    text = text if len(text) <= 60 else text[:57] + "..."
    kind = names.get(type(value))
    return text if kind is None else kind if value is None else f"{text} ({kind})"


class Fields:
    """The keys of one JSON object, read with their types checked.

    Args:
        data: the object.
        where: how messages name it, for example the path of the file.
    """

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def wrong(self, key: str, expected: str) -> ConfigError:
        """The error for a key that is missing or holds something else."""
        got = show(self.data[key]) if key in self.data else "no such key"
        return ConfigError(f"{self.where}: {key} must be {expected}, got {got}")

    def whole(self, key: str, default: Any = REQUIRED, minimum: int = 1) -> int:
        """A whole number from `minimum` to 2^31 - 1."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
            raise self.wrong(key, f"a whole number from {minimum} to 2^31 - 1")
        return value

    def number(self, key: str, default: Any = REQUIRED, above: float = 0.0) -> float:
        """A finite number above `above`."""
        value = self._get(key, default)
        number = finite(value)
        if number is None or number <= above:
            raise self.wrong(key, f"a finite number above {above:g}")
        return number

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def table(self, key: str) -> Fields | None:
        """A nested object, or None where there is none."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object or null")
        return Fields(value, f"{self.where}: {key}")

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """A token id, or None. Old configs write -1 for none."""
        value = self.data.get(key, default)
        if value is None or value == -1:
            return None
        return self.whole(key, default, minimum=0)

    def token_ids(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A token id or a list of them."""
        value = self.data.get(key, list(default))
        ids = value if isinstance(value, list) else [] if value is None or value == -1 else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 2**31 for i in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(ids)

    def is_null(self, key: str) -> bool:
        """The key is there and says none, which some keys tell from not being there."""
        return key in self.data and self.data[key] is None

    def _get(self, key: str, default: Any) -> Any:
        """null means the default, as in transformers; a key that is required may not be null."""
        value = self.data.get(key)
        if value is None:
            if default is REQUIRED:
                raise self.wrong(key, "given")
            return default
        return value


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
