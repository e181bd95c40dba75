"""What instruct models put around what they were asked for: announcements, remarks, quotes, emphasis, fences, thoughts.

`clean` takes off what can be told from the text; `refused` and `announced` say where nothing can be saved. The words
are English, in which the bundled prompts ask. What stands in the source too is never taken for the model's own.
"""

from __future__ import annotations

import polars as pl


def _any(*phrases: str) -> str:
    """A pattern for any of some phrases, comma-separated lists of them; ' is also the typographic one."""
    listed = (phrase.strip() for some in phrases for phrase in some.split(","))
    return f"(?:{'|'.join(phrase.replace(chr(39), '[' + chr(39) + '’]') for phrase in listed if phrase)})"


# The task, and not the matter of the text: "Here is the paraphrase:", but not "Here is the town:".
_TASK = _any(
    "paraphras, rephras, re-phras, rewrit, re-writ, reword, restat, simpler, simplif, summar, requested, instruct",
    "questions and answers, question-answer, question and answer, q&a, q/a, (?:key|main) (?:facts|points|information)",
)
_TEXT = _any("version, passage, provided, the text, the given text")
_ASSENT = _any("sure(?: thing)?, certainly, of course, absolutely, okay, ok, all ?right, great, no problem, gladly")
_HERE = _any("here (?:is|are), here's, below (?:is|are), the following (?:is|are), following (?:is|are), this is")
_DONE = _any("as requested, i have, i've")
_MADE = _any(
    "paraphrased?, paraphrasing, rephrased?, rephrasing, reworded, restated, simplified, rewritten, rewrite, new"
)
_KIND = _any("text, version, passage, paragraph, article")
_OFFER = _any("i can, i will, i'll, i'd, i would, let me, happy to, glad to")
_WORK = _any("do (?:so|that|this|it), be (?:happy|glad), help, assist, try, provide, creat, generat, transform")
_CHAT = rf"(?:{_TASK}|{_HERE}\b[^\n]{{0,40}}{_TEXT}|{_OFFER}(?: \w+)? {_WORK}|here (?:you go|it is))"  # not the text's
_BUT = rf"\A(?:{_ASSENT}\b[\s!.,:–—-]*|unfortunately,? |hello[!.,]? |hi[!.,]? )?"
_OPENINGS = (
    rf"\A{_ASSENT}[!.,:]+(?:[ \t][^\n]{{0,80}}?{_CHAT}[^\n]{{0,80}})?[ \t]*\n+",
    rf"{_BUT}(?:{_HERE}|{_DONE})\b[^\n]{{0,160}}?(?:{_TASK}|{_TEXT})[^\n]{{0,160}}?:[ \t]*(?:\n+|\z)",
    rf"{_BUT}(?:{_HERE}|{_DONE})\b[^\n:.]{{0,160}}?{_TASK}[^\n:.]{{0,160}}?:[ \t]+",
    rf"\A(?:the |my )?{_MADE}(?: {_KIND})*[ \t]*:\s+",
    rf"\A(?:output|response|(?:the )?{_KIND}(?: is)?)[ \t]*:\s+",  # the prompt's own label is one
)
_BYE = _any("i hope (?:this|that|it), let me know, feel free to (?:ask|let|reach|contact), would you like me")
_REMARKS = (
    rf"\n\s*[(\[]?(?:please )?note\b[^\n]{{0,200}}(?:{_TASK}|{_TEXT})[^\n]*\z",
    rf"\n\s*(?:please )?{_BYE}[^\n]*\z",
)
_CANNOT = _any(
    "can't, cannot, can not, won't, will not, unable, not able, must decline, do(?:n't| not) (?:have|see|feel)"
)
_TO_DO = _any(
    "fulfil, assist, help you, help with, comply, complete, provide, rewrit, rephras, paraphras, creat, generat",
    "process, do (?:this|that), answer, (?:a|the|any) text, (?:a|the|any) passage",
)
_SORRY = _any("i(?:'m| am) (?:so |very )?(?:sorry|afraid), i apologi[sz]e, my apologies, sorry")
_REFUSALS = (
    rf"{_SORRY}\b[^\n]{{0,40}}?(?:{_CANNOT}|no text|no passage)",
    rf"(?:i|i['’]m|i am) {_CANNOT}\b[^\n]{{0,40}}?{_TO_DO}",
    _any("i am, i'm, as") + r" an? (?:ai|artificial intelligence|large language model|language model)\b",
    r"[^\n]{0,60}\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming)",
    r"(?:could|can|would) you (?:please )?(?:provide|share|give)\b",
    r"please (?:provide|share)\b",
    _any("there is, there was, i see, i do not see, i don't see") + r" (?:no|any) (?:text|passage|content)\b",
    r"no (?:text|passage|content) (?:was|is|has been) (?:provided|given)",
)
_REFUSES = rf"{_BUT}(?:{'|'.join(_REFUSALS)})"
_ANNOUNCED = (
    rf"\A{_ASSENT}(?:[!.:]|,[^\n.]{{0,80}}{_CHAT})|"
    rf"\A(?:i['’]d|i would) be (?:happy|glad)|\A(?:(?:i['’]m|i am) )?happy to help|"
    rf"\A(?:{_HERE}|{_DONE})\b[^\n.]{{0,80}}{_TASK}|"
    rf"\A(?:the|this) (?:given |rewritten )?{_KIND} (?:is|was|has|describe|provide|contain|discuss|explain|tell)"
)
_BOLD = r"(^|[^0-9A-Za-z_)\]*\\])\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*"  # `x**2 + y**2` is none
_ITALIC = r"(^|[^\w*\\])\*([^\s*](?:[^*\n]*[^\s*])?)\*"
_QUOTES = (r'\A"([^"]+)"\z', r"\A“([^“”]+)”\z", r"\A«\s*([^«»]+?)\s*»\z", r"\A„([^„“”]+)[“”]\z", r"\A'([^']+)'\z")


def clean(outputs: pl.Series, sources: pl.Series) -> pl.Series:
    """The outputs without what was put around them.

    A model's thoughts (`<think>…</think>`), a code fence around all, asterisks of emphasis, an announcement ("Sure!
    Here is a paraphrase:"), a remark at the end ("I hope this helps!") and quotes around all go, in this order. Fences
    and asterisks stay where the source has some: then they may be the text's own.
    """
    text, source = pl.col("output"), pl.col("source")
    frame = pl.DataFrame({"output": outputs, "source": sources}).with_columns(
        text.str.replace(r"(?s)\A\s*<think>.*?</think>", "").str.strip_chars()
    )
    alone = (text.str.count_matches("```", literal=True) == 2) & ~source.str.contains("```", literal=True)
    inside = text.str.replace(r"(?s)\A```\w*\n(.*?)\n?```\z", "$1")
    frame = frame.with_columns(output=pl.when(alone).then(inside).otherwise(text))
    plain = text.str.replace_all(_BOLD, "$1$2").str.replace_all(_ITALIC, "$1$2")
    starred = source.str.contains("*", literal=True)
    frame = frame.with_columns(output=pl.when(starred).then(text).otherwise(plain).str.strip_chars())
    for pattern in (*_OPENINGS, *_REMARKS):
        without = text.str.replace(f"(?i)(?:{pattern})", "").str.strip_chars()
        frame = frame.with_columns(output=pl.when(_own(pattern)).then(without).otherwise(text))
    for pattern in _QUOTES:
        quoted = source.str.strip_chars().str.contains(pattern)
        frame = frame.with_columns(output=pl.when(quoted).then(text).otherwise(text.str.replace(pattern, "$1")))
    return frame["output"].str.strip_chars()


def refused(outputs: pl.Series, sources: pl.Series) -> pl.Series:
    """Boolean: in its first words the model declines, apologises or asks for a text."""
    return pl.DataFrame({"output": outputs, "source": sources}).select(_own(_REFUSES)).to_series()


def announced(outputs: pl.Series, sources: pl.Series) -> pl.Series:
    """Boolean: in its first words the model still speaks of its task."""
    return pl.DataFrame({"output": outputs, "source": sources}).select(_own(_ANNOUNCED)).to_series()


def _own(pattern: str) -> pl.Expr:
    """Whether the output has the pattern, and the source not the same words."""
    found = pl.col("output").str.extract(f"(?i)({pattern})", 1)
    same = pl.col("source").str.to_lowercase().str.contains(found.str.strip_chars().str.to_lowercase(), literal=True)
    return found.is_not_null() & ~same.fill_null(False)
