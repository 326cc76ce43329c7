"""Extension of the API reference: entries that document several names at once, `flip, reverse: ...`, become one each.

The last name keeps the text, the others point to it. mkdocs loads this file (mkdocs.yml); the package never does.
"""

import re

import griffe


def split_pairs(text: str) -> str:
    """Docstring `text` with one name an entry."""

    def split(match: re.Match) -> str:
        indent, names = match[1], re.split(r",\s*", match[2])
        return "".join(f"{indent}{name}: see `{names[-1]}`.\n" for name in names[:-1]) + f"{indent}{names[-1]}:"

    return re.sub(r"^(  )(\w+(?:,\s\w+)+):", split, text, flags=re.MULTILINE)


class Pairs(griffe.Extension):
    """Applies `split_pairs` to every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = split_pairs(obj.docstring.value)
