"""What a draft for a gap may be: it ends where the text after the gap begins."""


def cut_overlap(draft: str, suffix: str) -> str:
    """The part of a draft before it runs into the text after the gap.

    The draft ends at the first place from which it repeats the suffix: either up to the draft's own end, or for the
    whole first line of the suffix, where the draft's line must end too. "foo)" before ")" is "foo", but "f(x) + y"
    before ")" stays, since its parenthesis closes another one.
    """
    line = _first_line(suffix)
    for start in range(len(draft)):
        rest = draft[start:]
        if suffix.startswith(rest) or (line and rest.startswith(line + "\n")):
            return draft[:start]
    return draft


def _first_line(text: str) -> str:
    """`text` up to the end of its first line that is not blank; "" if all are."""
    num_blank = len(text) - len(text.lstrip())
    return text[: (text + "\n").index("\n", num_blank)] if num_blank < len(text) else ""
