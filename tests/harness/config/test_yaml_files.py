"""One reader of YAML: numbers are numbers, keys stand once, and what cannot be read has a line."""

from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.config.yaml_files import NotYaml, has_keys, parse, read_yaml, to_text


def faults_of(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E6", 1e6), ("1e+3", 1e3), ("-.5e2", -50.0), (".5", 0.5), ("1.", 1.0),
        ("12", 12), ("-3", -3), ("0o17", 15), ("0x1F", 31), (".inf", float("inf")),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None),
        ("010", "010"), ("1_000", "1_000"), ("12:30", "12:30"), ("22:30:00", "22:30:00"),
        ("2024-01-01", "2024-01-01"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("n", "n"),
        ("None", "None"), ("'1e-4'", "1e-4"), ("1e", "1e"), ("e4", "e4"), ("0b11", "0b11"),
        ("[1e-6, no, '3']", [1e-6, "no", "3"]),
        ("{on: 1, 2: x, ~: y}", {"on": 1, "2": "x", "~": "y"}),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse(text)[0]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["1e4", "0o17", "1_000", "010", "12:30", "2024-01-01", "yes", "~", "", 1e-6, True]
)
def test_what_is_written_reads_back_as_it_was(value: Any) -> None:
    assert parse(to_text({"a": [value, "ü"]}))[0] == {"a": [value, "ü"]}


def test_a_key_of_text_keeps_its_value_as_it_was_written() -> None:
    text = "a: {x: 12.10, y: FALSE, z: ~}\nb: [1e3]\nc: 1e3\n"
    found, lines = parse(text, lambda key: key.partition(".")[0] in "ab")
    assert found == {"a": {"x": "12.10", "y": "FALSE", "z": None}, "b": ["1e3"], "c": 1e3}
    assert (lines["a.y"], lines["c"]) == (1, 3)


def test_what_an_alias_stands_for_is_text_only_under_a_key_of_text() -> None:
    text = "name: &x 5\nsamples: *x\nnames: {a: &y {b: 1.10}, c: [*x]}\nsizes: {<<: *y, d: *y}\n"
    found, _ = parse(text, lambda key: key.startswith("name"))
    assert found == {
        "name": "5", "samples": 5, "names": {"a": {"b": "1.10"}, "c": ["5"]},
        "sizes": {"b": 1.1, "d": {"b": 1.1}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("doors: 4\nname: [a\n", ", line 3: expected ',' or ']', but got '<stream end>'"),
        ("doors: 4\n\tname: b\n", ", line 2: a tab where YAML needs spaces; replace it by spaces"),
        ("doors: 4\r\n\r\nname:\tb\r\n",
         ", line 3: a tab where YAML needs spaces; replace it by spaces"),
        ("- doors\n", ", line 1: expected `key: value` lines, found a list"),
        ("doors\n", ", line 1: expected `key: value` lines, found a string"),
        ("a: 1\n---\nb: 2\n",
         ", line 2: expected a single document in the stream, but found another document"),
        ("a: !!python/object:os.system x\n",
         ", line 1: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object:os.system'"),
        ("b: 1\na: !!int x\n", ", line 2: 'x' does not fit its tag: int"),
        ("a: !!int 010\n", ", line 1: '010' does not fit its tag: int"),
        ("a: !!int 1_000\n", ", line 1: '1_000' does not fit its tag: int"),
        ("a: !!float 1:30\n", ", line 1: '1:30' does not fit its tag: float"),
        ("a: !!bool yes\n", ", line 1: 'yes' does not fit its tag: bool"),
        ("b: 1\na: !!timestamp x\n", ", line 2: could not determine a constructor for the tag "
                                     "'tag:yaml.org,2002:timestamp'"),
        ("a: !!set {b}\n", ", line 1: could not determine a constructor for the tag "
                          "'tag:yaml.org,2002:set'"),
        ('b: 1\na: "\\ud83d"\n', ", line 2: '\\ud83d' is half of a character; write the whole one"),
        ('b: 1\n"\\ud83d": a\n', ", line 2: '\\ud83d' is half of a character; write the whole one"),
        ('a: "\\U0FFFFFFF"\n', ", line 1: cannot be read: chr() arg not in range(0x110000)"),
        ("a: " + "[" * 1000 + "\n", ", line 1: is nested too deeply"),
        ("a: &a [" + "x, " * 99 + "]\nb: &b [" + "*a, " * 99 + "]\nc: [" + "*b, " * 99 + "]\n",
         ", line 3: aliases stand for more than 10000 values"),
        ("a: 1\nb: \x07\n", ", line 2: the character '\\x07' is not allowed in YAML"),
        ("a: &a {b: *a}\n", ", line 1: is nested too deeply"),
        ("doors: 4\nengine:\n  power: 1\n  power: 2\n",
         ", line 4: engine.power appears twice (first on line 3)"),
        ("a: {b: 1}\na: {b: 2}\n", ", line 2: a appears twice (first on line 1)"),
        ("engine.power: 1\nengine: {power: 2}\n",
         ", line 2: engine.power appears twice (first on line 1)"),
        ("a:\n- {b: 1}\n- {b: 1,\n   'b': 2}\n",
         ", line 4: a[1].b appears twice (first on line 3)"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_reported_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode())
    assert faults_of(path) == [f"{path}{message}"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1e-4\r\nb: |\r\n  two\r\n  lines\r\n")
    assert read_yaml(path) == ({"a": 1e-4, "b": "two\nlines\n"}, {"a": 1, "b": 2})


def test_a_file_that_is_missing_or_no_text_is_reported(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "no.yaml") == [f"{tmp_path}/no.yaml: no such file"]
    (tmp_path / "loss_weights.yaml").touch()
    assert faults_of(tmp_path / "los_weights.yaml") == [
        f"{tmp_path}/los_weights.yaml: no such file; did you mean loss_weights.yaml?"
    ]
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xfc\n")
    assert faults_of(tmp_path / "latin.yaml") == [
        f"{tmp_path}/latin.yaml, line 2: byte 0xfc is not UTF-8; save the file as UTF-8"
    ]
    assert faults_of(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# only a comment\n")
    assert read_yaml(path) == ({}, {})


def test_a_number_too_long_to_be_printed_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(f"a: 1\nb: 0x{'f' * 4000}\n")
    [fault] = faults_of(path)
    assert fault.startswith(f"{path}, line 2: '0xfff")
    assert fault.endswith("does not fit its tag: int")


def test_what_no_configuration_can_be_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * 1_000_000)
    for path in (Path("/dev/zero"), tmp_path / "large.yaml"):
        assert faults_of(path) == [f"{path}: is no configuration: larger than 1000000 bytes"]


def test_what_is_merged_into_a_mapping_is_read_as_that_mappings_keys() -> None:
    text = "x: &x {name: 0123, size: 1e3}\na: {<<: *x, size: 2}\nb: {<<: [*x, {name: 5}]}\n"
    found, lines = parse(text, lambda key: key.endswith("name"))
    assert found["a"] == {"name": "0123", "size": 2}
    assert found["b"] == {"name": "0123", "size": 1e3}
    assert lines["a.size"] == 2
    with pytest.raises(NotYaml, match=r"^a.<< appears twice \(first on line 1\)$"):
        parse("a: {<<: {b: 1}, <<: {b: 2}}")
    for text in ("a: {<<: 5}", "a: {<<: [{b: 1}, 5]}"):
        with pytest.raises(NotYaml, match=r"^<<: expected a mapping, or a list of mappings$"):
            parse(text)


@pytest.mark.parametrize("text", [
    "a: 1\n", "# text\na: {b: [1, x]}\n", "{", "stage: [\n", "[5]", "text", "", "{}",
    "a: 1\n b: 2\n", "a: \t- 1", "\x00", "a: *b", "--- {a: 1}",
])
def test_a_quick_look_and_reading_agree_on_whether_a_file_has_keys(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    try:
        expected = bool(read_yaml(file)[0])
    except UserError:
        expected = False
    if text == "a: *b":  # an alias of nothing: the quick look does not follow aliases
        expected = True
    assert has_keys(file) == expected
    file.write_bytes(b"a: \xff")
    assert not has_keys(file)
