"""One key of another project: the settings of ours that it becomes, or why there are none."""

import ast
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config.casts import TRUTHS

Theirs = Mapping[str, Any]
"""All values of a configuration of theirs by dotted key, their defaults included."""
UNSET = "unset"
"""The default of keys that do nothing where they are left out."""


@dataclass(frozen=True)
class Made:
    """What one key becomes."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    """Where there are no settings: why."""
    is_loud: bool = False
    """Whether the result is not theirs because of this key."""


Make = Callable[[Any, Theirs], Made]


@dataclass(frozen=True)
class Row:
    """One key of theirs."""

    key: str
    ours: str
    """Our keys, or "" where there is no counterpart."""
    make: Make
    default: Any = UNSET
    """Their default."""
    remark: str = ""


@dataclass(frozen=True)
class Project:
    """A project's keys."""

    name: str
    rows: tuple[Row, ...]
    base: Mapping[str, Any]
    """Settings of ours that no key of theirs sets, but their code computes so."""
    differs: tuple[str, ...] = ()
    """Where the result is not theirs, whatever the keys say."""

    @property
    def defaults(self) -> dict[str, Any]:
        return {row.key: row.default for row in self.rows if row.default is not UNSET}

    def row(self, key: str) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)


def same(key: str, ours: str, default: Any = UNSET, remark: str = "") -> Row:
    """Return the row of a key that has the same meaning here."""
    return Row(key, ours, lambda value, _: Made({ours: value}), default, remark)


def by(
    key: str, ours: str, settings: Callable[[Any, Theirs], Mapping[str, Any]],
    default: Any = UNSET, remark: str = "",
) -> Row:
    """Return the row of a key whose settings a function makes; where it makes none, `remark` says
    why."""
    def make(value: Any, theirs: Theirs) -> Made:
        made = settings(value, theirs)
        return Made(made, "" if made else remark)

    return Row(key, ours, make, default, remark)


def only(key: str, allowed: tuple[Any, ...], why: str, default: Any = UNSET) -> Row:
    """Return the row of a key that has one meaning here: `why` tells it. Other values change the
    result."""
    def make(value: Any, _: Theirs) -> Made:
        is_ours = any(plain(value) == plain(one) for one in allowed)
        return Made(note=why, is_loud=not is_ours)

    shown = " or ".join(f"`{one}`" for one in allowed)
    return Row(key, "", make, default, f"only {shown}: {why}")


def unused(key: str, why: str, default: Any = UNSET) -> Row:
    """Return the row of a key without counterpart that changes no result."""
    return Row(key, "", lambda *_: Made(note=why), default, why)


def plain(value: Any) -> str:
    """Return a value as text that is equal for yes and True, 1 and 1.0."""
    text = str(value).strip().lower()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(float(value))
    return str(TRUTHS.get(text, text))


def truth(value: Any) -> bool:
    """Return a true/false value, which may be written on, off, yes or no. Raises ValueError."""
    if str(value).lower() not in TRUTHS:
        raise ValueError("expected true or false")
    return TRUTHS[str(value).lower()]


def literal(value: Any) -> Any:
    """Return a text that yacs reads as Python, such as ('market1501') or (30, 50), as its value."""
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings(action="ignore"):  # such as an escape of no character
            found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return list(found) if isinstance(found, tuple) else found


def listed(value: Any) -> list[Any]:
    """Return one value or several as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


DATASETS = {
    "dukemtmcreid": "dukemtmc", "occ_duke": "occluded_duke", "occludedduke": "occluded_duke",
    "veri": "veri776", "vehicleid": "vehicleid_800", "smallvehicleid": "vehicleid_800",
    "mediumvehicleid": "vehicleid_1600", "largevehicleid": "vehicleid_2400",
}
"""Their names of datasets in lower case, with ours where they differ."""


def dataset(name: Any) -> str:
    text = str(name).strip()
    known = ("market1501", "msmt17", "dukemtmc", *DATASETS)
    return DATASETS.get(text.lower(), text.lower()) if text.lower() in known else text


def trained_on(names: Any, _: Theirs) -> dict[str, Any]:
    """Return the settings of the training sets."""
    found = [dataset(name) for name in listed(names)]
    settings: dict[str, Any] = {"data.name": found[0]}
    if len(found) > 1:
        settings["data.train"] = found
    if found[0].startswith("ve"):  # VeRi-776, VehicleID
        settings["model.noun"] = "vehicle"
    return settings


def tested_on(names: Any, theirs: Theirs) -> dict[str, Any]:
    """Return the setting of test sets that are not those of the training."""
    found = [dataset(name) for name in listed(names)]
    trained = theirs.get("DATASETS.NAMES", theirs.get("data.sources"))
    return {} if found == [dataset(name) for name in listed(trained)] else {"data.test": found}


def size(value: Any, _: Theirs) -> dict[str, Any]:
    height, width = value
    return {"data.height": height, "data.width": width}


def triple(ours: str, scale: float = 1.0) -> Callable[[Any, Theirs], dict[str, Any]]:
    """Return a function for the mean or the deviation of three colours, in units of 1 / scale."""
    return lambda value, _: {ours: [round(one / scale, 9) for one in value]}


def root(value: Any, _: Theirs) -> dict[str, Any]:
    return {"data.root": value} if value else {}
