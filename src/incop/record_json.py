"""Records as JSON: written, and read back by the types and ranges of their fields; no torch."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from incop import schema_1
from incop.errors import InputError, quoted

MAX_COUNT = 2**53  # beyond it a float, in which costs are computed, is no longer exact
MAX_DEPTH = 20  # objects and lists within each other, where a record may hold anything
ACCURACY_NAME = "accuracy"

# What numbers of a name must lie between when they are read; others may be any float, NaN too. Whole numbers are counts.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("sparsity", "model_sparsity", "test_accuracy", "lr_share"), (0.0, 1.0)),
    **dict.fromkeys(("epoch", "epochs", "max_epochs", "full_epochs"), (0.0, 1e9)),
    **dict.fromkeys(("seconds", "probe_seconds", "record_seconds"), (0.0, 1e12)),
}


class Record:
    """What all records share: a plain dictionary of JSON values, there and back."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary of JSON values (nested records too)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record; unknown keys of a newer version are refused by name."""
        if not isinstance(data, Mapping):
            raise InputError(
                f"a {cls.__name__} record is a {type(data).__name__}, not an object of keys and values: "
                "the file is damaged or was edited"
            )
        readers, needed = _readers(cls)  # type: ignore[arg-type]  # mypy does not see that a class can be hashed
        if strange := [key for key in data if key not in readers]:
            raise InputError(
                f"a {cls.__name__} record has the unknown key {quoted(min(map(str, strange)))}: "
                "it was written by another version of incop, or edited"
            )
        if missing := [name for name in needed if name not in data]:
            raise InputError(
                f"a {cls.__name__} record lacks the key {min(missing)!r}: the file was cut short or edited"
            )
        return cls(**{name: readers[name](value) for name, value in data.items()})


class MetricRecord(Record):
    """A record with a metric's value, which in JSON stands under a key of its own where the metric is accuracy."""

    ACCURACY_KEY: ClassVar[str]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # keys that are written only where they say something

    @property
    def metric_name(self) -> str:
        """The name of what `metric_value` is a value of."""
        raise NotImplementedError

    @property
    def accuracy(self) -> float | None:
        """The value, where the metric is accuracy; None otherwise."""
        return self._value() if self.metric_name == ACCURACY_NAME else None

    @property
    def judged(self) -> str:
        """The value under its name, such as "accuracy 0.939" or "rmse 3.2"; empty where nothing was measured."""
        digits = ".3f" if self.metric_name == ACCURACY_NAME else ".4g"
        return "" if self._value() is None else f"{self.metric_name} {self._value():{digits}}"

    def _value(self) -> float | None:
        return self.metric_value  # type: ignore[attr-defined,no-any-return]  # a field of every record of this kind

    def to_json(self) -> dict[str, Any]:
        """Return the record as a dictionary of JSON values."""
        data = super().to_json()
        if self.metric_name == ACCURACY_NAME:
            del data["metric"]
            data[self.ACCURACY_KEY] = data.pop("metric_value")
        return {key: value for key, value in data.items() if key not in self.OPTIONAL or value not in (None, "")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a record, also of schema 1."""
        found = schema_1.record(data, cls.ACCURACY_KEY) if isinstance(data, Mapping) else data
        if isinstance(found, dict) and cls.ACCURACY_KEY in found:
            value, where = found.pop(cls.ACCURACY_KEY), f"{cls.__name__}.{cls.ACCURACY_KEY}"
            found["metric_value"] = None if value is None else _number(where, float, (0.0, 1.0), value)
        return super().from_json(found)


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN: "nan", "inf", "-inf", which float() reads back
    return value


Reader = Callable[[Any], Any]


@functools.cache
def _readers(record: type[Record]) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """Return how each field is read from its JSON value, and which fields must be there.

    Made once a class: a run has tens of thousands of records, and looking at types again for each took longer than
    reading the file.
    """
    hints = typing.get_type_hints(record)
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    needed = tuple(f.name for f in fields if f.default is missing and f.default_factory is missing)
    return {f.name: _reader(f"{record.__name__}.{f.name}", hints[f.name]) for f in fields}, needed


def _reader(where: str, hint: Any) -> Reader:
    """Return the function that reads a field's type: lists as tuples, "nan" as NaN only where a float belongs."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return functools.partial(_anything, where)
    if kind in (types.UnionType, typing.Union):
        inner = _reader(where, next(p for p in parts if p is not types.NoneType))
        return lambda value: None if value is None else inner(value)
    if kind is tuple:
        each = _reader(where, parts[0])
        return lambda value: (
            tuple(map(each, value)) if isinstance(value, list | tuple) else _refuse(where, "tuple", value)
        )
    if kind is Mapping:
        one = _reader(where, parts[1])
        return lambda value: (
            {str(k): one(v) for k, v in value.items()}
            if isinstance(value, Mapping)
            else _refuse(where, "Mapping", value)
        )
    if isinstance(hint, type) and issubclass(hint, Record):
        return lambda value: (
            hint.from_json(value) if isinstance(value, Mapping) else _refuse(where, hint.__name__, value)
        )
    return functools.partial(_plain_value, where, hint, RANGES.get(where.rpartition(".")[2]))


def _plain_value(where: str, hint: Any, span: tuple[float, float] | None, value: Any) -> Any:
    if hint in (int, float):
        return _number(where, hint, span, value)
    return value if type(value) is hint else _refuse(where, getattr(hint, "__name__", str(hint)), value)


def _number(where: str, hint: Any, span: tuple[float, float] | None, value: Any) -> Any:
    kind = type(value)
    if kind is int:
        if not (0 if hint is int else -MAX_COUNT) <= value <= MAX_COUNT:
            return _refuse(where, f"{'a count' if hint is int else 'a number'} of at most 2**53", value)
    elif hint is int:
        return _refuse(where, "int", value)
    elif kind is str and value in ("nan", "inf", "-inf"):
        value = float(value)
    elif kind is not float:
        return _refuse(where, "float", value)
    if span is not None and not span[0] <= value <= span[1]:
        return _refuse(where, f"a number from {span[0]:g} to {span[1]:g}", value)
    return value


def _anything(where: str, value: Any, depth: int = 0) -> Any:
    """Let any JSON value pass that can be shown later: not nested without end, no endless whole number."""
    if depth > MAX_DEPTH or (isinstance(value, int) and abs(value) > 2**63):
        return _refuse(where, f"a number of 64 bits or at most {MAX_DEPTH} levels of lists", value)
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            _anything(where, part, depth + 1)
    return value


def _refuse(where: str, wanted: str, value: Any) -> Any:
    raise InputError(
        f"a record holds {quoted(value)} under {where!r}, where {wanted} belongs: the file is damaged or was edited"
    )
