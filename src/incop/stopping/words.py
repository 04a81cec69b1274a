"""Rules in words: what `str(rule)` writes, `parse` reads back as the same rule."""

from __future__ import annotations

import re
from collections.abc import Callable

from incop.errors import InputError, nearest
from incop.stopping.rules import (
    AccuracyRestored,
    AfterEpochs,
    FlowRestored,
    FlowSettled,
    LossPlateau,
    MaskSettled,
    MetricRestored,
    Rule,
)

NUMBER = r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)"
DEEPEST = 100  # parentheses in a rule
LONGEST = 1000  # phrases, words and parentheses in a rule
COUNT = r"(\d{1,9})"

# How a phrase is read, how it is shown, what it makes.
PHRASES: tuple[tuple[str, str, Callable[[re.Match[str]], Rule]], ...] = (
    (
        rf"flow within {NUMBER}( relative)?",
        "flow within X [relative]",
        lambda m: FlowRestored(float(m[1]), bool(m[2])),
    ),
    (
        rf"flow settled {NUMBER} for {COUNT}",
        "flow settled X for N",
        lambda m: FlowSettled(int(m[2]), float(m[1])),
    ),
    (
        rf"mask settled {NUMBER} for {COUNT}",
        "mask settled X for N",
        lambda m: MaskSettled(float(m[1]), int(m[2])),
    ),
    (r"accuracy restored", "accuracy restored", lambda m: AccuracyRestored()),
    (rf"accuracy within {NUMBER}", "accuracy within X", lambda m: AccuracyRestored(float(m[1]))),
    (r"metric restored", "metric restored", lambda m: MetricRestored()),
    (rf"metric within {NUMBER}", "metric within X", lambda m: MetricRestored(float(m[1]))),
    (
        rf"loss settled {NUMBER} for {COUNT}",
        "loss settled X for N",
        lambda m: LossPlateau(int(m[2]), float(m[1])),
    ),
    (rf"after {NUMBER} epochs?", "after N epochs", lambda m: AfterEpochs(float(m[1]))),
)


def parse(text: str) -> Rule:
    """Read a rule in words, as `str(rule)` writes it.

    Phrases are joined by `or` and `and`; `and` binds closer; parentheses group. Capitals do not matter.

    Args:
        text: such as "flow within 0.11 or accuracy restored or after 20 epochs".

    Returns:
        The rule.

    Raises:
        InputError: a phrase is unknown or a number out of range.

    Example:
        >>> from incop import stopping
        >>> stopping.parse("flow within 0.05 or after 20 epochs")
        Either(rules=(FlowRestored(within=0.05, relative=False), AfterEpochs(epochs=20.0)))
    """
    if not isinstance(text, str):
        raise InputError(f"a rule in words is a text, not a {type(text).__name__}")
    tokens = [t.strip() for t in re.split(r"(\(|\)|\bor\b|\band\b|\||&)", text.lower()) if t.strip()]
    words = {"|": "or", "&": "and"}
    tokens = [words.get(t, t) for t in tokens]
    if tokens.count("(") > DEEPEST:
        raise InputError(f"the rule has {tokens.count('(')} parentheses: at most {DEEPEST} can be read")
    if len(tokens) > LONGEST:
        raise InputError(f"the rule has {len(tokens)} phrases, words and parentheses: at most {LONGEST} can be read")
    rule, rest = _parse_or(tokens, text)
    if rest:
        raise InputError(f"the rule {text!r} cannot be read at {rest[0]!r}")
    return rule


def _parse_or(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    rule, rest = _parse_and(tokens, text)
    while rest and rest[0] == "or":
        other, rest = _parse_and(rest[1:], text)
        rule = rule | other
    return rule, rest


def _parse_and(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    rule, rest = _parse_phrase(tokens, text)
    while rest and rest[0] == "and":
        other, rest = _parse_phrase(rest[1:], text)
        rule = rule & other
    return rule, rest


def _parse_phrase(tokens: list[str], text: str) -> tuple[Rule, list[str]]:
    if tokens and tokens[0] == "(":
        rule, rest = _parse_or(tokens[1:], text)
        if not rest or rest[0] != ")":
            raise InputError(f"the rule {text!r} has a parenthesis that is not closed")
        return rule, rest[1:]
    if tokens:
        phrase = re.sub(r"\s+", " ", tokens[0])
        for pattern, _, make in PHRASES:
            if match := re.fullmatch(pattern, phrase):
                return make(match), tokens[1:]
    forms = ", ".join(f"'{form}'" for _, form, _ in PHRASES)
    shown = repr(tokens[0]) if tokens else "its end"
    plain = re.sub(NUMBER, "X", tokens[0]) if tokens else ""
    hint = nearest(plain, [form for _, form, _ in PHRASES])
    raise InputError(
        f"the rule {text!r} cannot be read at {shown}: {hint}a rule is one of {forms}, joined by 'or' and 'and'"
    )
