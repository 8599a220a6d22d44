"""Settings become one checked dataclass tree; all faults are reported at once.

Every value comes as a `Setting`, which holds where it was written, so each fault names its file and
line.
"""

import copy
import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.base.errors import UserError
from harness.config.casts import REFERENCE, at_type, misfit
from harness.config.fields import field_types, removed_keys
from harness.config.sources import Setting, suggest
from harness.config.values import value_at

T = TypeVar("T")
VARIABLE = re.compile(r"\$\{[A-Z][A-Z0-9_]*\}")
"""A variable of the environment; keys are in lower case."""


def build(schema: type[T], settings: Iterable[Setting]) -> T:
    """Apply settings in order (later ones win) to the defaults of `schema` and check the tree.

    Any dataclass of the tree may have a method `faults()` that yields (key below it, message) for
    values that cannot go together. Raises UserError listing every fault of every setting.
    """
    return Base(schema, settings).build()


class Base(Generic[T]):
    """Settings that many trees have in common: applied once, however many trees are built."""

    def __init__(self, schema: type[T], settings: Iterable[Setting]) -> None:
        self.schema, self.settings = schema, tuple(settings)
        self._kinds = field_types(schema)
        self._tree = _defaults(schema)
        self._faults: list[str] = []
        for setting in self.settings:
            fault = _apply(self._tree, setting, self._kinds, schema)
            self._faults += [f"{setting.where}: {fault}"] if fault else []
        self._config = typing.cast(T, OmegaConf.to_object(self._tree))
        self._refers = REFERENCE in str(OmegaConf.to_container(self._tree, resolve=False))
        self._outcomes: dict[tuple[str, str], tuple[Any, str | None]] = {}

    def build(self, more: Iterable[Setting] = ()) -> T:
        """Return what `build` makes of the common settings and `more`, in this order.

        Sections in which `more` sets nothing are the same objects in all trees.
        """
        more = tuple(more)
        refers = self._refers or any(REFERENCE in str(setting.value) for setting in more)
        twice = len({setting.key for setting in more}) < len(more)
        if more and (refers or twice):  # then one setting is not understood without the others
            return build(self.schema, (*self.settings, *more))
        config, faults = self._config, list(self._faults)
        for setting in more:
            value, fault = self._outcome(setting)
            if setting.key in self._kinds:
                config = _replaced(config, setting.key, value)
            faults += [f"{setting.where}: {fault}"] if fault else []
        sources = {setting.key: setting.where for setting in (*self.settings, *more)}
        for key, message in _tree_faults(config, ""):
            # where the user wrote this key or, if it is a default, another that the message names
            named = [sources[k] for k in sources if "." in k and f"{k}=" in message]
            faults.append(f"{sources.get(key, (named or ['default'])[0])}: {key}: {message}")
        if faults:
            raise UserError("\n".join(dict.fromkeys(faults)))
        return config

    def _outcome(self, setting: Setting) -> tuple[Any, str | None]:
        """Return the value that a further setting gives its key, and what is wrong with it."""
        key, asked = setting.key, (setting.key, repr(setting.value))
        if asked not in self._outcomes:
            value, fault = None, _apply(self._tree, setting, self._kinds, self.schema)
            if key in self._kinds:
                value = OmegaConf.select(self._tree, key)
                value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
                # as it was: mappings are merged into what is there
                OmegaConf.update(self._tree, key, value_at(self._config, key), merge=False)
            self._outcomes[asked] = value, fault
        return self._outcomes[asked]


def _defaults(schema: type) -> Any:
    """Return a new tree of a schema's defaults: copying takes 4 ms, building it 20 ms."""
    return copy.deepcopy(_structured(schema))


@cache
def _structured(schema: type) -> Any:
    return OmegaConf.structured(schema)


def _replaced(node: Any, key: str, value: Any) -> Any:
    """Return a tree that differs in one dotted key and shares all other sections."""
    first, _, rest = key.partition(".")
    below = _replaced(getattr(node, first), rest, value) if rest else value
    return dataclasses.replace(node, **{first: below})


def _apply(tree: Any, setting: Setting, kinds: Mapping[str, Any], schema: type) -> str | None:
    """Set one value; returns what is wrong with it, or None. kinds: as `field_types` says."""
    key, value = setting.key, setting.value
    if key not in kinds:
        if (gone := removed_keys(schema).get(key)) is not None:
            return None if value is gone.only else f"{key}: was removed; {gone.advice}"
        below = [k for k in kinds if k.startswith(f"{key}.")]
        if below:
            return f"{key} is a section; set one of its keys, such as {below[0]}"
        return f"no key {key}{suggest(key, list(kinds))}"
    try:
        OmegaConf.update(tree, key, _with_variables(at_type(value, kinds[key])))
        found = OmegaConf.select(tree, key, throw_on_missing=True)
        # once more, as it may stand for another key
        at_type(OmegaConf.to_object(found) if OmegaConf.is_config(found) else found, kinds[key])
        return None
    except (OmegaConfBaseException, ValueError):
        _unset(tree, key, schema)
    return f"{key}: {misfit(value, kinds[key])}"


def _with_variables(value: Any) -> Any:
    """Keep `${HOME}`, which is the environment's, from being taken for a reference to a key."""
    if isinstance(value, Mapping):
        return {name: _with_variables(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_variables(item) for item in value]
    return VARIABLE.sub(r"\\\g<0>", value) if isinstance(value, str) else value


def _unset(tree: Any, key: str, schema: type) -> None:
    """Put a key's default back, so that the other keys can still be checked."""
    OmegaConf.update(tree, key, OmegaConf.select(_defaults(schema), key))


def _tree_faults(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if hasattr(node, "faults"):
        for key, message in node.faults():
            yield f"{prefix}{key}", message
    for item in dataclasses.fields(node):
        child = getattr(node, item.name)
        if dataclasses.is_dataclass(child):
            yield from _tree_faults(child, f"{prefix}{item.name}.")
