"""HTML pages: what comes from elsewhere is escaped, and nothing is needed from anywhere."""

import os
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from urllib.parse import quote, unquote

from harness.reporting import page

NASTY = """<script>alert("x")</script> & 'more'"""


class Reader(HTMLParser):
    """Collects a document's tags and its text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_text_names_and_values_from_elsewhere_stay_text_wherever_they_stand() -> None:
    parts = [
        page.section(NASTY, page.element("p", NASTY), id_=NASTY), page.note(NASTY),
        page.link(NASTY, NASTY), page.table([NASTY], [[NASTY]]),
        page.image(b"x", NASTY),
    ]
    read = Reader(page.page(NASTY, *parts))
    assert "script" not in [tag for tag, _ in read.tags]
    assert "".join(read.words).count(NASTY) == 8
    found = [value for _, attributes in read.tags for value in attributes.values()]
    assert found.count(NASTY) == 2
    assert found.count(quote(NASTY)) == 1


def test_a_link_leads_to_the_file_of_that_name_whatever_it_is() -> None:
    for name in ("a #1/50%25?/log.txt", "javascript:alert(1)/x", "b\udcff.txt", "../up/c.txt"):
        [(_, attributes)] = Reader(page.link(name, "text")).tags
        target = attributes["href"]
        assert ":" not in target
        assert os.fsencode(unquote(target, errors="surrogateescape")) == os.fsencode(name)
        assert "#" not in target
    assert page.link("#lists", "text") == '<a href="#lists">text</a>'


def test_what_is_html_already_is_not_escaped_twice() -> None:
    inner = page.element("b", "a < b")
    assert page.element("p", inner, " & ", 1) == "<p><b>a &lt; b</b> &amp; 1</p>"
    assert page.element("td", None, class_="number", for_=None) == '<td class="number"></td>'


def test_a_table_puts_numbers_right_and_marks_cells() -> None:
    made = page.table(["a", "b"], [["x", 0.123456], [True, None]], marked=[[0, 1], [0, 0]])
    cells = [(tag, had) for tag, had in Reader(made).tags if tag == "td"]
    assert [had.get("class") for _, had in cells] == [None, "number mark", None, None]
    assert Reader(made).words == ["a", "b", "x", "0.1235", "True"]


def test_a_page_lets_the_browser_load_nothing_and_execute_its_own_scripts_alone() -> None:
    document = page.page("title", page.image(b"\xff\xd8", "photo"))
    nothing = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
    assert policy_of(document) == nothing
    assert 'src="data:image/jpeg;base64,/9g="' in document
    scripts = ["first()", "second('ä')"]
    hashes = [b64encode(sha256(one.encode("utf-8")).digest()).decode() for one in scripts]
    document = page.page("title", scripts=scripts[:1], unpacked=scripts[1:])
    assert policy_of(document) == (
        f"{nothing}; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'"
    )
    assert document.count("<script>") == 1


def policy_of(document: str) -> str | None:
    [policy] = [had["content"] for _, had in Reader(document).tags if "http-equiv" in had]
    return policy


def test_rows_of_a_table_of_runs_carry_their_runs_signatures() -> None:
    made = page.runs_table(["run", NASTY], [["a", 0.5], [NASTY, None]], [["r1"], ["r2", "r3"]])
    read = Reader(made)
    assert [had.get("data-run") for tag, had in read.tags if tag == "tr"] == [None, "r1", "r2 r3"]
    assert read.words == ["run", NASTY, "a", "0.5", NASTY]
    assert made.count(page.RUNS) == 1
