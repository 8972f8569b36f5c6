"""The UI's languages: what is found in templates and how it is exchanged."""

from __future__ import annotations

import pytest

from appliance.web.pages import language
from tests import i18n


@pytest.mark.parametrize("tongue", [each for each in language.LANGUAGES if each != language.ENGLISH])
def test_every_text_of_every_template_and_script_is_translated(tongue: str) -> None:
    lacking = i18n.lacking(i18n.TEMPLATES / "words" / f"{tongue}.po")
    assert not lacking, f"{len(lacking)} messages without words; run ./dev i18n: {lacking[:20]}"


def test_a_sentence_with_expressions_and_tags_is_one_message() -> None:
    source = '<p>Type <strong class="x">{{ name }}</strong> to <a href="/y">confirm</a></p>'
    assert language.messages(source) == ["Type <strong>{{ name }}</strong> to <a>confirm</a>"]
    german = {language.messages(source)[0]: "<strong>{{ name }}</strong> zum <a>Bestätigen</a> eingeben"}
    assert language.translate(source, german) == (
        '<p><strong class="x">{{ name }}</strong> zum <a href="/y">Bestätigen</a> eingeben</p>'
    )


def test_attributes_and_literals_that_people_read_are_messages_and_others_are_not() -> None:
    source = (
        '{% if state == "Gone" %}<input class="Big" placeholder="Find it" title="Stop {{ name }}">'
        '{{ ui.field("name", "Name", hint="A DNS label") }}{{ words["Key"] }}{{ _("yes") }}{% endif %}'
    )
    assert language.messages(source) == ["Find it", "Stop {{ name }}", "Name", "A DNS label", "yes"]


def test_every_template_is_the_same_again_without_words() -> None:
    for path in i18n.TEMPLATES.rglob("*.html"):
        source = path.read_text()
        assert language.translate(source, {}) == source, path


def test_a_word_with_quotes_stays_inside_its_literal() -> None:
    assert language.translate('{{ ui.head("Stop") }}', {"Stop": 'A "B" \\'}) == '{{ ui.head("A \\"B\\" \\\\") }}'


@pytest.mark.parametrize(
    ("cookie", "accepted", "chosen"),
    [
        ("de", "en", "de"),
        (None, "fr, de-AT;q=0.8, en;q=0.9", "en"),
        ("xx", "de", "de"),
        (None, "", "en"),
        (None, "de;q=0", "en"),
        (None, ";q=x,,," * 100, "en"),
    ],
)
def test_the_reader_chooses_else_the_browser(cookie: str | None, accepted: str, chosen: str) -> None:
    assert language.choose(cookie, accepted) == chosen


def test_a_catalogue_is_read_as_gettext_writes_it() -> None:
    text = '#: a.html\nmsgid ""\n"Two "\n"lines"\nmsgstr "Zwei\\n"\n"Zeilen"\n\nmsgid "empty"\nmsgstr ""\n'
    assert language.parse_po(text) == {"Two lines": "Zwei\nZeilen"}
