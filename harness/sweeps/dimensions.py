"""One searched key of a sweep: the values that are tried, in order or drawn at random."""

import hashlib
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from harness.base.errors import hint
from harness.base.mappings import is_number
from harness.config.casts import at_type, misfit
from harness.config.sources import Setting
from harness.sweeps.conditions import Condition, read_condition

Kind = Literal["grid", "choice", "uniform", "loguniform", "randint"]
ELSEWHERE: dict[str, Kind] = {
    "values": "grid", "grid_search": "grid", "categorical": "choice", "interval": "uniform",
    "quniform": "uniform", "q_uniform": "uniform", "float": "uniform", "qloguniform": "loguniform",
    "log_uniform": "loguniform", "log_uniform_values": "loguniform", "logfloat": "loguniform",
    "int_uniform": "randint", "range": "randint", "int": "randint", "qrandint": "randint",
}
"""Names in W&B, Ray, Hydra and Optuna, with ours."""
EVEN, NARROW = 1.5, 3.9
"""Listed numbers rise by nearly equal factors if the logs of these differ by less than EVEN times;
2, 3 and 4 would do so as well, but span less than NARROW."""
LARGEST = 2**53
"""Above it, floats do not hold all integers, so some would never be drawn."""


@dataclass(frozen=True)
class Dimension:
    """One searched key. values: what to try (grid, choice), or (low, high); randint excludes
    `high`."""

    key: str
    kind: Kind
    values: tuple[Any, ...]
    where: str
    when: Condition | None = None
    """Where this does not hold, the key keeps the recipe's value."""

    @property
    def is_random(self) -> bool:
        return self.kind != "grid"

    @property
    def is_log(self) -> bool:
        """Whether it is searched on a log scale: by loguniform, or by listed numbers that rise by
        nearly equal factors, such as 1, 3, 10 and 30."""
        if self.kind in ("uniform", "randint"):
            return False
        if self.kind == "loguniform":
            return True
        if not all(is_number(value) and value > 0 for value in self.values):
            return False
        logs = sorted({math.log(value) for value in self.values})
        steps = [high - low for low, high in pairwise(logs)]
        return (len(steps) > 1 and max(steps) < EVEN * min(steps)
                and logs[-1] - logs[0] > math.log(NARROW))

    def draw(self, n: int, attempt: int = 0, seed: int = 0) -> Any:
        """Return draw number `n` of a search seed, a function of these and the key alone. attempt:
        number of earlier draws in this place that a constraint forbade."""
        text = seeded(f"{self.key} {n}" + (f" {attempt}" if attempt else ""), seed)
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56  # [0, 1)
        if self.kind in ("grid", "choice"):
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "randint":
            return low + int(share * (high - low))
        if self.kind == "uniform":
            drawn = low + share * (high - low)
        else:
            drawn = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return min(max(short(drawn), low), high)

    def holds(self, value: Any) -> bool:
        """Return whether the value is one of those that are searched."""
        if self.kind in ("grid", "choice"):
            return value in self.values
        low, high = self.values
        if self.kind == "randint":
            return type(value) is int and low <= value < high
        return isinstance(value, int | float) and low <= value <= high


def seeded(text: str, seed: int) -> str:
    """Return the text whose hash decides a draw of a search; seed: its `search_seed`."""
    return f"search {seed}: {text}" if seed else text


def short(value: float) -> float:
    """Round to six digits: libraries differ in the last one of exp and log, and a run's name must
    not."""
    return float(f"{value:.6g}")


def read_dimension(setting: Setting, faults: list[str], type_: Any = Any) -> list[Dimension]:
    """Return the dimension that a `search` entry describes, with values of the key's type, or an
    empty list and a fault."""
    kinds: tuple[Kind, ...] = get_args(Kind)

    def fault(message: str) -> list[Dimension]:
        faults.append(f"{setting.where}: {setting.key}: {message}")
        return []

    def typed(value: Any) -> Any:
        try:
            found = at_type(value, type_)
            return list(found) if isinstance(found, tuple) else found  # as in a point's JSON
        except ValueError:
            return fault(misfit(value, type_)) or value

    entry = dict(setting.value) if isinstance(setting.value, dict) else {}
    when = None
    if "when" in entry:
        when = read_condition(entry.pop("when"), f"{setting.where}: {setting.key}: when", faults)
    if ours := _elsewhere(setting.value):
        return fault(f"found {setting.value!r}; did you mean {ours}?")
    if len(entry) != 1:
        return fault(f"expected one of {', '.join(kinds)}, such as {{grid: [0.0, 0.8]}}")
    (kind, values), = entry.items()
    if kind not in kinds:
        return fault(f"unknown search type {kind!r}{hint(kind, kinds)}")
    if not isinstance(values, list):
        return fault(f"{kind}: expected a list, found {values!r}")
    if kind in ("grid", "choice") and not values:
        return fault(f"{kind}: is empty")
    if kind not in ("grid", "choice") and not _is_range(kind, values):
        numbers = "integers" if kind == "randint" else "numbers"
        above = " above 0" if kind == "loguniform" else ""
        return fault(f"{kind}: expected two rising {numbers}{above}, found {values}")
    if kind != "randint":  # its values are integers whatever the key's type
        values = [typed(value) for value in values]
    return [Dimension(setting.key, kind, tuple(values), setting.where, when)]


def _elsewhere(entry: Any) -> str:
    """Return what to write for an entry in the words of W&B, Ray, Hydra or Optuna, such as
    tune.loguniform(1e-4, 1e-1) or {min: 0, max: 1}; "" for any other."""
    kinds: dict[str, Kind] = {**{kind: kind for kind in get_args(Kind)}, **ELSEWHERE}
    if isinstance(entry, str):
        call = re.fullmatch(r"(?:\w+\.)*(\w+)\((.*)\)", entry.strip())
        kind = kinds.get(call[1].removeprefix("suggest_")) if call else None
        listed = call[2].strip() if call else ""
        return f"{{{kind}: {listed if listed[:1] == '[' else f'[{listed}]'}}}" if kind else ""
    if not isinstance(entry, dict):
        return ""
    low, high = entry.get("min", entry.get("low")), entry.get("max", entry.get("high"))
    if low is not None and high is not None:
        is_whole = type(low) is int and type(high) is int and "distribution" not in entry
        kind = kinds.get(str(entry.get("distribution")), "randint" if is_whole else "uniform")
        high = high + 1 if kind == "randint" and type(high) is int else high  # included there
        return f"{{{kind}: [{low}, {high}]}}"
    if "value" in entry:
        return f"overrides: {{KEY: {entry['value']}}}"
    return next((f"{{{ELSEWHERE[kind]}: {listed}}}" for kind, listed in entry.items()
                 if kind in ELSEWHERE), "")


def _is_range(kind: Kind, values: list[Any]) -> bool:
    wanted = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or any(type(v) not in wanted for v in values):
        return False
    low, high = values
    if kind == "randint":
        return bool(-LARGEST <= low < high <= LARGEST)
    try:
        return bool(math.isfinite(float(high) - float(low)) and low < high
                    and (kind != "loguniform" or low > 0))
    except OverflowError:  # an integer that no float holds
        return False
