"""Settings from recipe files and command lines, each with the place where it was written."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.paths import is_utf8
from harness.config.fields import removed_keys, subsections
from harness.config.yaml_files import NotYaml, Texts, nowhere, parse


@dataclass(frozen=True)
class Setting:
    """One value for one dotted key, and where the user wrote it."""

    key: str
    value: Any
    where: str


def flatten(value: Mapping[str, Any], schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping, descending into the sections of `schema`."""
    sections = subsections(schema)
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
    """Return a mapping's values as settings of `schema`; `prefix`: its keys above in the file."""
    return [
        Setting(key, item, f"{path}, line {lines.get(prefix + key, 1)}")
        for key, item in flatten(value, schema)
    ]


def as_given_now(settings: list[Setting], schema: type) -> list[Setting]:
    """Translate the configuration of a finished run that an earlier version may have written.

    Settings are a whole configuration if they have keys in every section; others are returned as
    they are. The schema's class variable `absent` has the values that missing keys stand for,
    `removed` the settings that replace a removed key.
    """
    given = {setting.key for setting in settings}
    if not all(any(key.startswith(f"{name}.") for key in given) for name in subsections(schema)):
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


def parse_overrides(overrides: Iterable[str], texts: Texts = nowhere) -> list[Setting]:
    """Turn `key=value` words of a command line into settings; values are read as YAML.

    texts: tells which keys hold strings. Raises UserError with every word that lacks `=` or whose
    value is not YAML.
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
            # a name that is not UTF-8 cannot be YAML: a string
            value = parse(text, texts, key)[0] if is_utf8(text) else text
            settings.append(Setting(key, value, where))
        except NotYaml as error:
            faults.append(f"{where}: {key}: {text!r} is not a YAML value: {error}")
    if faults:
        raise UserError("\n".join(faults))
    return settings


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown key: the nearest known one, if any is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # the right last word under another section is the commonest slip
        near = [k for k in known if k.split(".")[-1] == name.split(".")[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""
