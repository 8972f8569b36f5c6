"""The languages of the UI. Templates are written in plain English; their words are exchanged when they are compiled.

    templates/words/de.po      the catalogue: msgid is the English text, msgstr the translation
    messages(source)           every text of a template that people read (`./dev i18n` keeps catalogues complete by it)
    translate(source, words)   the template in the other language: compiled like any template, at no cost when rendered

What people read is found by parsing, so that nothing can be forgotten:
- runs of text between tags, with `{{ expressions }}` as they stand and inline tags (`<a>`, `<strong>` …) without their
  attributes: one message is one sentence;
- the attributes of `ATTRIBUTES`;
- string literals in expressions and statements that begin like a word ("Name"), unless they are compared or looked up;
  any other literal by `_("…")`, which also translates at run time what Python gives a template.

Pure, but for `Catalogue.read`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENGLISH = "en"
LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch"}
COOKIE = "language"
DECIMAL: Mapping[str, str] = {"de": ","}
_IN_SCRIPT = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
ATTRIBUTES = ("title", "aria-label", "placeholder", "alt", "data-label", "data-done", "data-words")
INLINE = frozenset({"a", "strong", "em", "b", "i", "code", "kbd", "small", "br", "abbr", "mark"})
_TOKEN = re.compile(
    r"(?P<comment>\{#.*?#\}|<!--.*?-->)|(?P<block>\{%.*?%\})|(?P<expr>\{\{.*?\}\})"
    r"|(?P<tag><(?:!|/?[a-zA-Z])(?:\{\{.*?\}\}|\{%.*?%\}|[^<>{]|\{(?![{%]))*>)|(?P<text>[^<{]+|[<{])",
    re.DOTALL,
)
_TAG_NAME = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_ATTRIBUTE = re.compile(
    rf'(?P<head>\s(?:{"|".join(ATTRIBUTES)})=")(?P<value>(?:\{{\{{.*?\}}\}}|\{{%.*?%\}}|[^"])*)(?P<tail>")', re.DOTALL
)
_LITERAL = re.compile(r'"(?P<double>(?:[^"\\]|\\.)*)"|\'(?P<single>(?:[^\'\\]|\\.)*)\'')
_WORD = re.compile(r"[A-Z](?:[a-z]|[A-Za-z]* [^/]).*", re.DOTALL)
_IDENTIFIER = re.compile(r"\S*[a-z]\.[A-Z]\S*")
_OPAQUE = re.compile(r"<script.*?</script>|<style.*?</style>", re.DOTALL)
_SILENT_BLOCK = re.compile(r"\{%-?\s*(include|extends|import|from|block|endblock|macro)\b")
_LETTERS = re.compile(r"[^\W\d_]{2}|\b[AI]\b")
_WITH_KEY = re.compile(r"(.+) (\(\w+\))")
"""A word with a key of the configuration: "Disk (scsi0)"."""
_TASK = re.compile(r"(VM|Container|Guest) ([0-9]+): (.+)")
_PO_LINE = re.compile(r'(msgid|msgstr)?\s*(".*")')


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One language's words: English → its own."""

    language: str
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path, language: str) -> Catalogue:
        """The catalogue of a language (blocks). English, and a language without a file, has no words of its own."""
        path = directory / "words" / f"{language}.po"
        if language == ENGLISH or language not in LANGUAGES or not path.is_file():
            return cls(ENGLISH)
        return cls(language, parse_po(path.read_text(encoding="utf-8")))

    def __call__(self, text: str) -> str:
        """The translation of `text`, or itself; surrounding white space stays."""
        core = text.strip()
        found = self.words.get(core)
        if not found and (match := _WITH_KEY.fullmatch(core)) and match[1] in self.words:
            found = f"{self.words[match[1]]} {match[2]}"
        if not found and (task := _TASK.fullmatch(core)) and task[1] in self.words and task[3] in self.words:
            found = f"{self.words[task[1]]} {task[2]}: {self.words[task[3]]}"
        return text.replace(core, found) if found else text

    def of_scripts(self, directory: Path) -> Mapping[str, str]:
        """The words that the scripts of a directory say by `t("…")` (blocks)."""
        if not self.words:
            return {}
        said = {text for path in sorted(directory.glob("*.js")) for text in script_messages(path.read_text("utf-8"))}
        return {text: self.words[text] for text in sorted(said) if text in self.words}


def choose(cookie: str | None, accepted: str) -> str:
    """The language of a reader: their choice, else the first their browser asks for that there is (RFC 9110 §12.5.4)."""
    if cookie is not None and cookie in LANGUAGES:
        return cookie
    ranked: list[tuple[float, int, str]] = []
    for index, part in enumerate(accepted[:1000].split(",")[:32]):
        tag, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        ranked.append((-weight, index, tag.partition("-")[0].lower()))
    return next((tag for weight, _, tag in sorted(ranked) if tag in LANGUAGES and weight < 0), ENGLISH)


def parse_po(text: str) -> dict[str, str]:
    """A gettext catalogue without plurals and contexts: {msgid: msgstr}; entries without a translation are left out."""
    words: dict[str, str] = {}
    entry = {"msgid": "", "msgstr": ""}
    current = ""
    for line in [*text.splitlines(), 'msgid ""']:
        match = _PO_LINE.fullmatch(line.strip())
        if match is None:
            continue
        if match[1] == "msgid":
            if entry["msgid"] and entry["msgstr"]:
                words[entry["msgid"]] = entry["msgstr"]
            entry = {"msgid": "", "msgstr": ""}
        current = match[1] or current or "msgid"
        entry[current] += ast.literal_eval(match[2])
    return words


def messages(source: str) -> list[str]:
    """Every message of a template, in order."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _rewrite(source, note)
    return found


def script_messages(source: str) -> list[str]:
    """Every message of a script."""
    return [ast.literal_eval(f'"{text}"') for text in _IN_SCRIPT.findall(source)]


def translate(source: str, words: Mapping[str, str]) -> str:
    """The template with every message the catalogue has exchanged for its translation."""
    return _rewrite(source, lambda text: words.get(text, text))


# --- templates as tokens ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """Text, expressions and inline tags that follow each other."""

    parts: list[tuple[str, str]] = field(default_factory=list)

    def flush(self, say: Callable[[str], str]) -> str:
        parts, self.parts = self.parts, []
        head, core, tail = _trimmed(parts)
        words = "".join(text if kind != "tag" else f"<{_slash(text)}{_name(text)}>" for kind, text in core)
        plain = "".join(text for kind, text in core if kind == "text")
        outside = "".join(text for _, text in head), "".join(text for _, text in tail)
        message = re.sub(r"\s+", " ", words).strip()
        if not _LETTERS.search(_without_entities(plain)):
            core_text = "".join(_literals(text, say) if kind == "expr" else text for kind, text in core)
            return outside[0] + core_text + outside[1]
        translated = say(message)
        if translated == message:
            return outside[0] + "".join(text for _, text in core) + outside[1]
        lead = words[: len(words) - len(words.lstrip())]
        trail = words[len(words.rstrip()) :]
        return (
            outside[0]
            + lead
            + _with_tags(translated, [text for kind, text in core if kind == "tag"])
            + trail
            + outside[1]
        )


def _rewrite(source: str, say: Callable[[str], str]) -> str:
    out: list[str] = []
    run = _Run()
    for kind, text in _tokens(source):
        if kind == "text" or (kind == "expr" and not re.match(r"\{\{-?\s*ui\.", text)):
            run.parts.append((kind, text))
        elif kind == "tag" and _name(text) in INLINE and "{%" not in text:
            run.parts.append((kind, _attributes(text, say)))
        else:
            out.append(run.flush(say))
            if kind == "tag":
                out.append(_attributes(text, say))
            elif kind == "block" and _SILENT_BLOCK.match(text):
                out.append(text)
            else:
                out.append(_literals(text, say) if kind in ("block", "expr") else text)
    out.append(run.flush(say))
    return "".join(out)


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    position = 0
    for opaque in _OPAQUE.finditer(source):
        yield from _plain_tokens(source[position : opaque.start()])
        yield "comment", opaque[0]
        position = opaque.end()
    yield from _plain_tokens(source[position:])


def _plain_tokens(source: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(source):
        yield str(match.lastgroup), match[0]


def _trimmed(
    parts: list[tuple[str, str]],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """What stands before, in and after the message: tags that enclose it or belong to neighbours, expressions at an end."""
    head: list[tuple[str, str]] = []
    tail: list[tuple[str, str]] = []
    core = list(parts)
    while core:
        first, last = core[0], core[-1]
        if _is_blank(first) or (first[0] == "tag" and (_slash(first[1]) or _name(first[1]) == "br")):
            head.append(core.pop(0))
        elif _is_blank(last) or (last[0] == "tag" and (not _slash(last[1]) or _name(last[1]) == "br")):
            tail.insert(0, core.pop())
        elif first[0] == "tag" and _closes(core) == len(core) - 1:
            head.append(core.pop(0))
            tail.insert(0, core.pop())
        elif first[0] == "tag" and _closes(core) is None:
            head.append(core.pop(0))
        elif last[0] == "tag" and not _is_balanced(core):
            tail.insert(0, core.pop())
        else:
            break
    return head, core, tail


def _is_blank(part: tuple[str, str]) -> bool:
    return part[0] == "text" and not part[1].strip()


def _closes(core: list[tuple[str, str]]) -> int | None:
    """Where the tag that `core` begins with is closed."""
    depth, name = 0, _name(core[0][1])
    for index, (kind, text) in enumerate(core):
        if kind != "tag" or _name(text) != name:
            continue
        depth += -1 if _slash(text) else 1
        if depth == 0:
            return index
    return None


def _is_balanced(core: list[tuple[str, str]]) -> bool:
    depth = 0
    for kind, text in core:
        if kind == "tag" and _name(text) != "br":
            depth += -1 if _slash(text) else 1
            if depth < 0:
                return False
    return depth == 0


def _with_tags(translated: str, tags: list[str]) -> str:
    """The translation with each bare tag replaced by the template's own, attributes included, name by name in order."""
    left = list(tags)

    def own(match: re.Match[str]) -> str:
        for index, tag in enumerate(left):
            if (_slash(tag), _name(tag)) == (match[1], match[2]):
                return left.pop(index)
        return match[0]

    return re.sub(r"<(/?)([a-z]+)>", own, translated)


def _name(tag: str) -> str:
    match = _TAG_NAME.match(tag)
    return match[2].lower() if match else ""


def _slash(tag: str) -> str:
    return "/" if tag.startswith("</") else ""


def _attributes(tag: str, say: Callable[[str], str]) -> str:
    return _ATTRIBUTE.sub(lambda match: match["head"] + _attribute_value(match["value"], say) + match["tail"], tag)


def _attribute_value(value: str, say: Callable[[str], str]) -> str:
    out: list[str] = []
    run = _Run()
    for kind, text in _plain_tokens(value):
        if kind in ("text", "expr", "tag"):
            run.parts.append(("text" if kind == "tag" else kind, text))
        else:
            out += [run.flush(say), text]
    out.append(run.flush(say))
    return "".join(out)


def _literals(text: str, say: Callable[[str], str]) -> str:
    """String literals of an expression or statement that are words."""

    def exchange(match: re.Match[str]) -> str:
        quote = match[0][0]
        literal = match["double"] if quote == '"' else match["single"]
        before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
        marked = before.endswith("_(")
        if not marked and (
            not _WORD.fullmatch(literal.strip())
            or _IDENTIFIER.fullmatch(literal)
            or before.endswith(("==", "!=", "["))
            or after.startswith(("==", "!=", ":"))
        ):
            return match[0]
        core = literal.strip()
        if not core or "\\" in core:
            return match[0]
        translated = say(core).replace("\\", "\\\\").replace(quote, "\\" + quote)
        return quote + literal.replace(core, translated) + quote

    return _LITERAL.sub(exchange, text)


def _without_entities(text: str) -> str:
    return re.sub(r"&#?\w+;", "", text)
