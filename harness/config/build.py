"""Typed configuration: recipe files and dotted overrides become one checked dataclass tree.

Every value comes as a `Setting`, which remembers where it was written, so that each fault names its
file and line. All faults are collected and told at once. A run's signature is a hash of the
resolved tree without the fields marked `runtime`, which cannot change a result.
"""

import copy
import dataclasses
import difflib
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.base.errors import UserError
from harness.base.paths import expanded, is_utf8
from harness.config.casts import REFERENCE, at_type, misfit
from harness.config.yaml_files import ENDINGS, NotYaml, Texts, nowhere, parse, read_yaml, to_text

T = TypeVar("T")
VARIABLE = re.compile(r"\$\{[A-Z][A-Z0-9_]*\}")
"""A variable of the environment; keys are in lower case."""


@dataclass(frozen=True)
class Setting:
    """One value for one dotted key, and where the user wrote it."""

    key: str
    value: Any
    where: str


def runtime(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that says where or how fast a run runs, never what it computes."""
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata={"runtime": True})
    return field(default=default, metadata={"runtime": True})


def changeable(default: Any) -> Any:
    """A dataclass field that may get another value while a run goes on: it shapes nothing."""
    return field(default=default, metadata={"changeable": True})


def changeable_keys(schema: type, prefix: str = "") -> set[str]:
    """Return the dotted keys of a schema's `changeable` fields."""
    found = set()
    for item in dataclasses.fields(schema):
        section = _sections(schema).get(item.name)
        if section is not None:
            found |= changeable_keys(section, f"{prefix}{item.name}.")
        elif item.metadata.get("changeable"):
            found.add(f"{prefix}{item.name}")
    return found


def unless_empty(default: Any) -> Any:
    """A dataclass field that is part of the signature only where it is not its default.

    So a schema can gain a field and the runs made before keep their names.
    """
    return field(default=default, metadata={"unless_empty": True})


def where_it_counts(default: Any, counts: Callable[[Any], bool]) -> Any:
    """A dataclass field that is part of the signature only of trees for which `counts` is true.

    So the default can change for runs whose result it changes, and all other runs keep their names.
    """
    return field(default=default, metadata={"where_it_counts": counts})


# --- from files and command lines to settings ---


def flatten(value: Mapping[str, Any], schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping, going down where `schema` has a section."""
    sections = _sections(schema)
    for key, item in value.items():
        dotted = f"{prefix}{key}"
        section = sections.get(str(key).split(".")[-1]) if "." not in str(key) else None
        if section is not None and isinstance(item, Mapping):
            yield from flatten(item, section, f"{dotted}.")
        else:
            yield dotted, item


def settings_of(
    value: Mapping[str, Any], lines: Mapping[str, int], path: Path, schema: type, prefix: str = ""
) -> list[Setting]:
    """Return a mapping's values as settings of `schema`; `prefix` is its place inside the file."""
    return [
        Setting(key, item, f"{path}, line {lines.get(prefix + key, 1)}")
        for key, item in flatten(value, schema)
    ]


def read_recipe(path: Path, schema: type, recipes: Path | None = None) -> list[Setting]:
    """Return a recipe's settings, those of the recipes that it `extends` (one or a list) first.

    recipes: where further recipes are that it may extend, besides those in its own folder. Raises
    UserError for what `read_yaml` refuses, a missing base or a circle of bases.
    """
    return list(_read_recipe(path, schema, recipes, ()))


def _read_recipe(
    path: Path, schema: type, recipes: Path | None, above: tuple[Path, ...]
) -> Iterator[Setting]:
    if any(path.samefile(one) for one in above):
        names = " -> ".join(file.stem for file in [*above, path])
        raise UserError(f"{above[0]}: recipes extend each other in a circle: {names}")
    value, lines = read_yaml(path, text_fields(schema))
    bases = value.pop("extends", None) or []
    where = f"{path}, line {lines.get('extends', 1)}"
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{where}: extends: expected a recipe's name or a list of them, found "
                        f"{bases!r}")
    folders = [path.parent, *([recipes] if recipes else [])]
    for base in bases:
        file = _recipe_in(folders, base, where, not_first=path)
        yield from _read_recipe(file, schema, recipes, (*above, path))
    yield from as_given_now(settings_of(value, lines, path, schema), schema)


def as_given_now(settings: list[Setting], schema: type) -> list[Setting]:
    """Return the settings of a resolved tree, that of a run, as they mean what they meant then.

    It is one when no section is left out. A version before may have written it: the schema's class
    variable `absent` has the value that a missing key stands for, `removed` what replaces a key.
    """
    given = {setting.key for setting in settings}
    if not all(any(key.startswith(f"{name}.") for key in given) for name in _sections(schema)):
        return settings
    gone = removed_keys(schema)
    kept = [
        Setting(key, value, setting.where)
        for setting in settings
        for key, value in (
            gone[setting.key].replaced_by.items()
            if setting.key in gone and setting.value is not gone[setting.key].only
            else [(setting.key, setting.value)]
        )
    ]
    absent: Mapping[str, Any] = getattr(schema, "absent", {})
    where = settings[0].where if settings else ""
    return [*(Setting(k, v, where) for k, v in absent.items() if k not in given), *kept]


def find_recipe(
    name: str, folder: Path, *, near: Sequence[Path] = (Path(),), where: str | None = None
) -> Path:
    """Return the file of a recipe given by name, looked up in `folder`, or by path.

    near: from where a path may be meant. Raises UserError, with the nearest names, when there is
    none.
    """
    return _recipe_in([*near, folder] if name.endswith(ENDINGS) else [folder], name, where)


def _recipe_in(
    folders: Sequence[Path], name: str, where: str | None, not_first: Path | None = None
) -> Path:
    """Return the first file of that name; `not_first` only where there is no other."""
    file = expanded(name) if name.endswith(ENDINGS) else f"{name}.yaml"
    found = [folder / file for folder in folders if (folder / file).is_file()]
    found.sort(key=lambda path: not_first is not None and path.samefile(not_first))
    if found:
        return found[0]
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    start = f"{where}: " if where else ""
    is_path, looked = name.endswith(ENDINGS), ", ".join(str(one.absolute()) for one in folders)
    raise UserError(f"{start}no recipe {name!r}{f' in {looked}' if is_path else ''}"
                    f"{_suggest(name, known)}\nrecipes: {', '.join(known)}")


def parse_overrides(overrides: Iterable[str], texts: Texts = nowhere) -> list[Setting]:
    """Turn `key=value` words of a command line into settings; values are read as YAML.

    texts: which keys hold text. Raises UserError naming every word without `=` or with a value
    that is not YAML.
    """
    settings: list[Setting] = []
    faults: list[str] = []
    for number, word in enumerate(overrides, start=1):
        key, equals, text = (part.strip() for part in word.partition("="))
        where = f"command line, override {number}"
        if not equals or not key:
            faults.append(f"{where}: {word!r} is not of the form key=value")
            continue
        try:
            # a name that is not UTF-8 is no YAML, and a text
            value = parse(text, texts, key)[0] if is_utf8(text) else text
            settings.append(Setting(key, value, where))
        except NotYaml as error:
            faults.append(f"{where}: {key}: {text!r} is not a YAML value: {error}")
    if faults:
        raise UserError("\n".join(faults))
    return settings


# --- from settings to a checked tree ---


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
        return f"no key {key}{_suggest(key, list(kinds))}"
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


# --- what a schema holds ---


def keys(schema: type) -> Iterator[str]:
    """Yield the dotted keys of a schema, in order."""
    yield from field_types(schema)


def field_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of each dotted key of a schema."""
    hints = typing.get_type_hints(schema)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found.update(field_types(typing.cast(type, kind), f"{prefix}{item.name}."))
        else:
            found[f"{prefix}{item.name}"] = kind
    return found


class Removed(NamedTuple):
    """A key that a schema had."""

    only: Any
    """The one value that means what is done now."""
    advice: str
    replaced_by: Mapping[str, Any]
    """The settings, by dotted key, that another value in a finished run's configuration means."""


def removed_keys(schema: type, prefix: str = "") -> dict[str, Removed]:
    """Return the keys that a schema had.

    A dataclass of the tree names them in a class variable `removed`. Such a key with that value may
    still be given, and stays part of the signature: runs made before keep their names.
    """
    own: Mapping[str, Removed] = getattr(schema, "removed", {})
    found = {f"{prefix}{key}": gone for key, gone in own.items()}
    for name, section in _sections(schema).items():
        found |= removed_keys(section, f"{prefix}{name}.")
    return found


def _sections(schema: type) -> dict[str, type]:
    hints = typing.get_type_hints(schema)
    return {
        item.name: hints[item.name]
        for item in dataclasses.fields(schema)
        if dataclasses.is_dataclass(hints[item.name])
    }


def text_fields(schema: type) -> Texts:
    """Return a function that says whether a dotted key of a schema holds text and nothing else."""
    kinds = field_types(schema)

    def holds_text(kind: Any) -> bool:
        args = [one for one in typing.get_args(kind) if one is not type(None)]
        return kind is str or (bool(args) and all(map(holds_text, args)))

    def texts(key: str) -> bool:
        above = kinds.get(key.rpartition(".")[0])
        return holds_text(kinds.get(key, above if typing.get_origin(above) is dict else None))

    return texts


# --- what a tree means ---


def to_mapping(config: Any, *, with_runtime: bool = True, whole: Any = None) -> dict[str, Any]:
    """Return a config tree as nested mappings; `with_runtime=False`: only what a signature holds.

    whole: the tree that `config` is a section of, if it is one.
    """
    result: dict[str, Any] = {}
    whole = config if whole is None else whole
    for item in dataclasses.fields(config):
        if not with_runtime and item.metadata.get("runtime"):
            continue
        value = getattr(config, item.name)
        if not with_runtime and item.metadata.get("unless_empty") and value == item.default:
            continue
        counts = item.metadata.get("where_it_counts")
        if not with_runtime and counts is not None and not counts(whole):
            continue
        if dataclasses.is_dataclass(value):
            value = to_mapping(value, with_runtime=with_runtime, whole=whole)
        elif isinstance(value, tuple):
            value = list(value)
        result[item.name] = value
    if not with_runtime:
        result |= {key: gone.only for key, gone in getattr(config, "removed", {}).items()}
    return result


def signature(config: Any) -> str:
    """Return the 12 hex digits that name a run: a hash of all that can change its result."""
    text = json.dumps(to_mapping(config, with_runtime=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_yaml(config: Any) -> str:
    """Return the resolved tree as YAML, in the order of the dataclasses."""
    return to_text(to_mapping(config))


def differences(base: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys on which two trees of one schema differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in keys(type(base)):
        a, b = value_at(base, key), value_at(other, key)
        if a != b:
            found[key] = (a, b)
    return found


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key of a tree; raises AttributeError when there is none."""
    node = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # the right last word under another section is the commonest slip
        near = [k for k in known if k.split(".")[-1] == name.split(".")[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""
