"""What a completion concludes: where its answer may stand, and whether it still stands at the end.

Reasoning inside <think> is no answer. Nor is what a completion takes back, or what it was still thinking
about when the length limit cut it off: such a completion gives the answer that it has stated, or none.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from opd.reasoning import answer_in

STATEMENTS, STATEMENT = 20, 1000
"""How many statements are read, and how many characters of each: a model that repeats itself for thousands of
tokens must not keep its reader busy."""

READ = STATEMENTS * STATEMENT
"""Characters among which what was stated is looked for to be taken back."""

BARE_WORDS = 3
"""Words of a completion that is nothing but an answer, such as "42 apples"."""

# Where models put their answer: \boxed{…}, "#### …", "the answer to … is …", "Answer: …", "the correct option
# is B".
_MARKER = re.compile(
    r"""\\boxed\s*\{ | \\boxed\s | \#\#\#\#
    | (?<!\bthis\s)\banswer\b (?:[^.\n:=]{0,60}?\b(?:is|was|be|equals)\b | \W{0,4}[:=])
    | \b(?:correct|right|best)\s(?:option|choice|letter)\s(?:is|would\sbe|must\sbe)\b
      (?=[\s*_(\["“]{1,6}(?-i:[A-J])(?![\w'’]))""",
    re.IGNORECASE | re.VERBOSE,
)
# What may stand between the marker and the answer: markup, a line break, "that", "option".
_LEAD = re.compile(r"(?:[\s*_`:=\"'“‘]|\$(?!\d)|\\[(\[]|\\(?:text|textbf|mathrm|boxed)\s*\{)*")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_LINE_END = re.compile(SENTENCE_END.pattern + r"|\n")

# Where a remark begins: behind punctuation or before a word that turns; and what may come before its point.
_TURN = (
    r"(?:[.!?…;:,\n—–)}*$]\s{0,5}|\s(?=(?:but|hm+)\b))"
    r"(?:(?:but|oh|ah|and|so|well|okay|ok|now)\b[\s,.…!—–-]{0,5}){0,3}"
)
_AGAIN = (
    r"(?:re-?(?:check|consider|count|calculate|compute|do|read|think|examine|evaluate|verify)|double|check|"
    r"verify|confirm|think|make\s+sure|try|look|go\s+(?:back|over)|see\s+(?:if|whether))\b"
)
# The writer wonders whether it is right.
_DOUBT = re.compile(
    _TURN + r"""(?:
    wait(?=\W*$|\s*[,.!?…:;—–-]|\s+(?:a|no|but|i|it|is|that|this|let|maybe|what|why|if|we|did|actually)\b)
    | (?:hold|hang)\s+on\b | hm+\b
    | let(?:['’]s|\s+me|\s+us)\s+(?:just\s+|quickly\s+|first\s+)?""" + _AGAIN + r"""
    | (?:should|do)\s+(?:i|we)\s+""" + _AGAIN + r"""
    | i(?:['’]ll|\s+(?:should|need\s+to|must|have\s+to|want\s+to|will))\s+(?:just\s+)?""" + _AGAIN + r"""
    | is\s+(?:that|this|it)\s+(?:really\s+|actually\s+)?(?:right|correct|true|so)\b
    | (?:are\s+we|am\s+i)\s+sure\b | i(?:['’]m|\s+am)\s+not\s+(?:so\s+|quite\s+|entirely\s+)?sure\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip
# The writer, cut off, was about to turn to something else.
_SECOND_THOUGHT = re.compile(
    _TURN + r"""(?:
    actually\b | alternatively\b | on\s+the\s+other\s+hand\b | or\s+(?:maybe|perhaps|is\s+it)\b
    | maybe\b | perhaps\b | what\s+(?:if|about)\b | (?<=\bbut)(?=\W*$)
    | (?<=\bbut\s)(?:if|is|does|did|should|the\s+(?:question|problem)|we|i)\b
    | however,?\s+(?:the\s+(?:question|problem)|we|i|if)\b )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip
_MISTAKE = r"(?:wrong|incorrect|mistaken|a\s+mistake|an\s+error|not\s+(?:right|correct|true|possible|it))\b"
# The writer says that it was wrong.
_CORRECTION = re.compile(
    _TURN + r"""(?:
    scratch\s+that\b | oops\b | correction\b | on\s+second\s+thoughts?\b | my\s+(?:mistake|bad)\b
    | i\s+(?:was|am)\s+(?:wrong|mistaken)\b | i\s+mis(?:read|counted|calculated|took|spoke|understood)\b
    | i(?:['’]ve)?(?:\s+(?:think|have|may|might|must|i)){0,4}
      \s+made\s+an?\s+(?:\w+\s+)?(?:mistake|error|slip)\b
    | no,?\s+wait\b | wait,?\s+no\b
    | wait\W+(?:no\W+)?(?:that|this|it)(?:['’]s|\s+is)\s+""" + _MISTAKE + r"""
    )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip
# The same in the sentence behind the statement: further on, "that is wrong" may speak of another choice. So
# it may where it goes on with a reason or a condition.
_DENIAL = re.compile(
    r"""[.!?…;:,\n—–)}*$]\s{0,5}(?:but\s+|no[,.]?\s+){0,3}(?:
    no(?=\s*[,.!:;—–-]\W*$|\W{1,5}(?:that|this|it|wait)\b)
    | (?: (?:that|this|it|which|(?:the|my|this|that)\s+answer)(?:['’]s|\s+is|\s+was|\s+seems|\s+looks)\s+
          (?:\w+ly\s+)?""" + _MISTAKE + r"""
        | (?:that|this|it)\s+c(?:an['’]t|annot|an\s+not|ouldn['’]t|ould\s+not)\s+be\s+
          (?:right|correct|true|it)\b
        | (?:that|this|it)\s+(?:is|was|does)(?:n['’]t|\s+not)\s+(?:\w+\s+)?
          (?:right|correct|true|work|fit|add\s+up|make\s+sense)\b
      )(?=\W{0,5}$|\s{0,2}[.!?…;:,\n—–*)](?!\W{0,5}(?:because|since|as|for|with|if|when|unless)\b))
    )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip
# Behind an answer that is a no itself, a no takes nothing back.
_CONTRARY = re.compile(r"\b(?:no|not|false|incorrect|wrong|untrue)\W{0,5}$", re.IGNORECASE)
_CONFIRMED = re.compile(
    r"\b(?:yes|yep|yeah|correct|right|confirm(?:s|ed)?|checks?\s+out|match(?:es)?|holds?|stands?|indeed|good|fine|"
    r"works|consistent|as\s+expected)\b|[✓✔✅]",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:not?|never|cannot|wrong|incorrect|mistake)\b|n['’]t\b|\?", re.IGNORECASE)
_CLAUSE = re.compile(r"[^.!?\n]+[.!?\n]?")


def conclusion(completion: str, *, cut: bool = False) -> str:
    """Return the part of a completion in which its answer may stand; nothing if it gives none.

    Args:
        completion: the text.
        cut: the length limit cut it off.
    """
    text = answer_in(completion)
    markers = deque(_MARKER.finditer(text), maxlen=STATEMENTS)
    while cut and markers and not _is_whole(text, markers[-1]):
        text = text[: markers.pop().start()]
    if not markers:
        if cut:
            words = re.findall(r"\w+", text)
            return text if len(words) <= BARE_WORDS and "\n" not in text.strip() and "=" not in text else ""
        return "" if _trails_off(text[-STATEMENT:]) else text
    behind = text[markers[-1].end() :]
    if cut:
        return "" if wavers(behind) else text
    for found in (_last(_CORRECTION, behind[:READ]), _denial(behind)):
        if found and not _is_confirmed(after := behind[found.end() :]):
            return after
    return "" if _trails_off(behind[-STATEMENT:]) else text


def wavers(text: str) -> bool:
    """Whether a text that was cut off doubts what it has said, and has not found it right since."""
    text = text[-READ:]
    doubts = [_last(pattern, text) for pattern in (_CORRECTION, _DOUBT, _SECOND_THOUGHT)]
    return any(found and not _is_confirmed(text[found.end() :]) for found in (*doubts, _denial(text)))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return where a pattern is found last."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _denial(text: str) -> re.Match[str] | None:
    """Return where the second sentence of a text denies the first."""
    first = _LINE_END.search(text)
    if first is None:
        return None
    if _CONTRARY.search(text[max(0, first.start() - 20) : first.start()]):
        return None
    second = _LINE_END.search(text, first.end())
    return _DENIAL.search(text, first.start(), second.end() if second else len(text))


def _is_whole(text: str, marker: re.Match[str]) -> bool:
    """Whether something stands behind a marker, with its brace closed."""
    rest = text[marker.end() : marker.end() + STATEMENT]
    return (
        in_braces(rest) != rest if marker[0].endswith("{") else bool(rest[_LEAD.match(rest).end() :].strip())
    )


def _is_confirmed(text: str) -> bool:
    """Whether what was doubted is found to be right in the end."""
    clauses = _CLAUSE.findall(text)
    return any(_CONFIRMED.search(clause) and not _NEGATED.search(clause) for clause in clauses)


def _trails_off(text: str) -> bool:
    """Whether a text ends in a doubt, of a few words and without a figure."""
    if not (doubt := _last(_DOUBT, text)):
        return False
    rest = text[doubt.end() :]
    return len(rest.split()) <= 8 and not re.search(r"\d", rest) and not _is_confirmed(rest)


def statements(text: str) -> Iterator[str]:
    """Yield what a text, such as a :func:`conclusion`, states as its answer, the last statement first."""
    for marker in reversed(deque(_MARKER.finditer(text), maxlen=STATEMENTS)):
        rest = text[marker.end() : marker.end() + STATEMENT]
        if marker[0].endswith("{"):
            yield in_braces(rest)
        else:
            yield rest[_LEAD.match(rest).end() :].split("\n", 1)[0]


def in_braces(text: str) -> str:
    """Cut ``text`` at the brace that closes the one before it; all of it where none does."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:i]
    return text
