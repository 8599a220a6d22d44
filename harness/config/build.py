"""Builds one checked dataclass tree from settings and reports all faults at once. Each `Setting`
holds where it was written, so each fault names its file and line."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from harness.base.errors import UserError
from harness.config.casts import REFERENCE, at_type, misfit
from harness.config.fields import field_types, removed_keys, text_fields
from harness.config.sources import Setting, suggest
from harness.config.values import value_at

T = TypeVar("T")


def build(schema: type[T], settings: Iterable[Setting]) -> T:
    """Apply settings in order (later ones win) to the defaults of `schema` and check the tree.

    A mapping is merged into the value of its key. `${key}` in a value stands for the final value of
    another key. Any dataclass of the tree may have a method `faults()` that yields (key below it,
    message) for conflicting values. Raises UserError with every fault of every setting.
    """
    return Base(schema, settings).build()


class Base(Generic[T]):
    """Settings shared by many trees, which are applied only once."""

    def __init__(self, schema: type[T], settings: Iterable[Setting]) -> None:
        self.schema, self.settings = schema, tuple(settings)
        self._kinds, self._is_text = field_types(schema), text_fields(schema)
        self._defaults = schema()
        self._config, self._faults = self._applied(self._defaults, self.settings)
        self._refers = any(_references(setting.value) for setting in self.settings)

    def build(self, more: Iterable[Setting] = ()) -> T:
        """Return the tree of the shared settings and then `more`; raises as the function `build`.
        Trees share the sections in which `more` sets nothing."""
        more = tuple(more)
        if more and self._refers:  # `more` may change a key that a shared value refers to
            return build(self.schema, (*self.settings, *more))
        config, faults = self._applied(self._config, more)
        faults = self._faults + faults
        sources = {setting.key: setting.where for setting in (*self.settings, *more)}
        for key, message in _tree_faults(config, ""):
            # the place of this key or, if it has its default, of another key in the message
            named = [sources[k] for k in sources if "." in k and f"{k}=" in message]
            faults.append(f"{sources.get(key, (named or ['default'])[0])}: {key}: {message}")
        if faults:
            raise UserError("\n".join(dict.fromkeys(faults)))
        return config

    def _applied(self, config: T, settings: Iterable[Setting]) -> tuple[T, list[str]]:
        """Return a tree with further settings, and their faults."""
        faults: list[str] = []
        waiting: dict[str, Setting] = {}
        for setting in settings:
            waiting.pop(setting.key, None)
            if setting.key in self._kinds and _references(setting.value):
                waiting[setting.key] = setting
            else:
                config = self._set(config, setting, faults)
        while waiting:
            ready = [one for one in waiting.values() if not waiting.keys() & _references(one.value)]
            if not ready:
                faults += [f"{one.where}: {one.key}: {one.value!r} refers to itself in a circle"
                           for one in waiting.values()]
                break
            for setting in ready:
                del waiting[setting.key]
                config = self._set_reference(config, setting, faults)
        return config, faults

    def _set_reference(self, config: T, setting: Setting, faults: list[str]) -> T:
        """Return a tree with a value that refers to other keys, whose values are final."""
        key, written = setting.key, setting.value
        unknown = sorted(_references(written) - self._kinds.keys())
        if unknown:
            faults += [f"{setting.where}: {key}: no key {other}, found {written!r}"
                       f"{suggest(other, list(self._kinds))}" for other in unknown]
            return config
        value = _resolved(written, config, self._is_text(key))
        own: list[str] = []
        if _references(value):  # the parts of two values would be one more reference
            own = [f"{setting.where}: {key}: {value!r} refers to a key once more"]
        else:
            config = self._set(config, dataclasses.replace(setting, value=value), own)
        faults += [f"{fault} (from {written!r})" for fault in own]
        return config

    def _set(self, config: T, setting: Setting, faults: list[str]) -> T:
        """Return a tree with one value, or with the key's default and a fault."""
        key, value = setting.key, setting.value
        if key not in self._kinds:
            fault = _unknown(setting, self._kinds, self.schema)
            faults += [f"{setting.where}: {fault}"] if fault else []
            return config
        try:
            value = at_type(value, self._kinds[key])
        except ValueError:
            faults.append(f"{setting.where}: {key}: {misfit(value, self._kinds[key])}"
                          f"{_several(setting, self._kinds[key])}")
            return _replaced(config, key, value_at(self._defaults, key))
        if isinstance(value, dict):
            value = {**(value_at(config, key) or {}), **value}
        return _replaced(config, key, value)


def _unknown(setting: Setting, kinds: Mapping[str, Any], schema: type) -> str | None:
    """Return the message about a key that the schema lacks; None if it is still accepted."""
    key = setting.key
    if (gone := removed_keys(schema).get(key)) is not None:
        return None if setting.value is gone.only else f"{key}: was removed; {gone.advice}"
    below = [one for one in kinds if one.startswith(f"{key}.")]
    if below:
        return f"{key} is a section; set one of its keys, such as {below[0]}"
    return f"no key {key}{suggest(key, list(kinds))}"


def _several(setting: Setting, kind: Any) -> str:
    """Return the end of a message about several values on the command line, which make a sweep."""
    value, is_typed = setting.value, setting.where.startswith("command line")
    if not is_typed or typing.get_origin(kind) in (list, tuple):
        return ""
    if (isinstance(value, list) and len(value) > 1) or (isinstance(value, str) and "," in value):
        text = value if isinstance(value, str) else ",".join(map(str, value))
        return (f"; for a run with each value: launch/slurm.py --sweep-name NAME --recipe RECIPE "
                f"{setting.key}={text}")
    return ""


def _replaced(node: Any, key: str, value: Any) -> Any:
    """Return a tree that differs in one dotted key and shares all other sections."""
    first, _, rest = key.partition(".")
    below = _replaced(getattr(node, first), rest, value) if rest else value
    return dataclasses.replace(node, **{first: below})


def _references(value: Any) -> set[str]:
    return set(REFERENCE.findall(str(value)))


def _resolved(value: Any, config: Any, as_text: bool) -> Any:
    """Return a value with each reference replaced by its key's value."""
    if isinstance(value, Mapping):
        return {name: _resolved(item, config, as_text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(item, config, as_text) for item in value]
    if not isinstance(value, str):
        return value
    whole = REFERENCE.fullmatch(value)
    found = value_at(config, whole[1]) if whole else value
    if whole and (found is None or not as_text):
        return found
    return REFERENCE.sub(lambda match: str(value_at(config, match[1])), value)


def _tree_faults(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if hasattr(node, "faults"):
        yield from ((f"{prefix}{key}", message) for key, message in node.faults())
    for name, child in vars(node).items():
        if dataclasses.is_dataclass(child):
            yield from _tree_faults(child, f"{prefix}{name}.")
