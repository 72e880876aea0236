"""Strict reading of JSON that anyone may have written."""

from __future__ import annotations

from typing import Any, NoReturn

WHOLE = 10**9
"""The largest whole number, where nothing else is said."""


class FieldError(ValueError):
    """A field is missing or is not what it must be."""


class Fields:
    """A JSON object whose fields are checked as they are read; ``place`` is where it stands."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise FieldError(f"{place or 'the file'} is not an object")
        self._value, self._place = value, place

    def _where(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise FieldError(f"{self._where(name)} is missing")
        return self._value[name]

    def refuse(self, name: str, value: object, allowed: str) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
        raise FieldError(f"{self._where(name)} is {shown}, not {allowed}")

    def whole(self, name: str, low: int = 1, high: int = WHOLE) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low:,} to {high:,}")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float:
        value = self._get(name)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not (good and low <= value <= high) or (above and value <= low):  # NaN is in no range
            self.refuse(name, value, f"a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    def text(self, name: str, allowed: tuple[str, ...] = ()) -> str:
        value = self._get(name)
        if allowed and value not in allowed:
            self.refuse(name, value, f"one of {', '.join(allowed)}")
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 300:
            self.refuse(name, value, "a line of at most 300 characters")
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def null(self, name: str) -> bool:
        return self._get(name) is None

    def inner(self, name: str) -> Fields:
        return Fields(self._get(name), self._where(name))

    def objects(self, name: str, low: int, high: int) -> list[Fields]:
        """A list of objects."""
        value = self._get(name)
        if not isinstance(value, list) or not low <= len(value) <= high:
            self.refuse(name, value, f"a list of {low} to {high:,}")
        return [Fields(item, f"{self._where(name)}[{i}]") for i, item in enumerate(value)]

    def several(self, name: str, low: int, high: int) -> Fields:
        """A list, as an object whose fields are 0, 1, ...: each is then read like any other."""
        value = self._get(name)
        if not isinstance(value, list) or not low <= len(value) <= high:
            self.refuse(name, value, f"a list of {low} to {high}")
        return Fields({str(i): item for i, item in enumerate(value)}, self._where(name))

    def names(self) -> list[str]:
        return list(self._value)

    def get(self, name: str) -> object:
        """A field as it is, or None where it is missing."""
        return self._value.get(name)

    def has(self, name: str) -> bool:
        """Whether a field is there and is not null."""
        return self._value.get(name) is not None
