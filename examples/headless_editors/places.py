"""The places in source files at which the editors are asked for suggestions: five in a Python file, or a file's own."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

_FILE = """\
import csv
import statistics


def read_prices(path):
    with open(path, newline="") as file:
        return [float(row["price"]) for row in csv.DictReader(file)]


def mean(values):
    return sum(values) / len(values)


def variance(values):
    centre = mean(values)
    return sum((value - centre) ** 2 for value in values) / len(values)


MARK


def main(path):
    prices = read_prices(path)
    print("mean", mean(prices))
    print("variance", variance(prices))
"""

_FUNCTION = '''\
def price_with_tax_{n}(net):
    """Return the gross price for tax rate {n}."""
    rate = RATES[{n}]
    return net * (1 + rate)

'''

_LANGUAGES = {".py": "python", ".js": "javascript", ".ts": "typescript", ".c": "c", ".go": "go", ".rs": "rust"}


@dataclass(frozen=True)
class Place:
    """A place: the file, where the cursor is put, and the keys that are then typed.

    Attributes:
        name: what is special about it.
        text: the file.
        row: the cursor's line, counted from 0.
        column: characters before the cursor.
        keys: in Vim's notation: a line break `<CR>` alone, or characters and then perhaps `<Left>`, to stand in
            brackets as if the editor had closed them.
        file_name: its ending tells the editor the language.
    """

    name: str
    text: str
    row: int
    column: int
    keys: str
    file_name: str = "prices.py"

    @property
    def language(self) -> str:
        """The language's name, as editors tell it."""
        return _LANGUAGES.get(Path(self.file_name).suffix, "text")

    @property
    def indent(self) -> int:
        """Spaces of one level of indentation: the most frequent step from a line to the next one."""
        widths = [len(line) - len(line.lstrip(" ")) for line in self.text.split("\n") if line.strip()]
        steps = Counter(after - before for before, after in itertools.pairwise(widths) if after > before + 1)
        return steps.most_common(1)[0][0] if steps else 4

    def typed(self) -> tuple[str, int, int]:
        """The file after the keys, with the cursor's line and column; an editor indents as the line asks for."""
        lines = self.text.split("\n")
        line = lines[self.row]
        before, after = line[: self.column], line[self.column :]
        if self.keys != "<CR>":
            typed = self.keys.replace("<Left>", "")
            lines[self.row] = before + typed + after
            return "\n".join(lines), self.row, self.column + len(typed) - self.keys.count("<Left>")
        opens = before.partition("#")[0].rstrip().endswith((":", "{"))
        indent = before[: len(before) - len(before.lstrip())] + " " * self.indent * opens
        lines[self.row : self.row + 1] = [before, indent + after]
        return "\n".join(lines), self.row + 1, len(indent)


def read_places(path: Path) -> list[Place]:
    """Places of a file of JSON lines with a field for each attribute; other fields are ignored."""
    names = [field.name for field in fields(Place)]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Place(**{name: row[name] for name in names if name in row}) for row in rows]


def _place(name: str, marked: str, keys: str, text: str = _FILE) -> Place:
    """`marked` is the line that takes the mark's place; its bar is the cursor."""
    column = marked.index("|")
    row = text.split("\n").index("MARK")
    lines = [line.replace("|", "") if line == marked else line for line in text.replace("MARK", marked).split("\n")]
    return Place(name, "\n".join(lines), row, column, keys)


def _long_file() -> str:
    """About 2,600 lines."""
    functions = [_FUNCTION.format(n=n) + "\n" for n in range(432)]
    middle = 216
    return "RATES = [n / 1000 for n in range(432)]\n\n\n" + "".join(
        [*functions[:middle], "MARK\n\n\n", *functions[middle:]]
    )


PLACES = (
    _place("after an automatic indent", "def median(values):|", "<CR>"),
    _place("in a word", "middle = statistics.med|", "i"),
    _place("in the middle of a line", "print(round(variance|))", "("),
    _place("at a line's end", "def standard_deviation(values)|", ":"),
    _place("in a file of 2,600 lines", "def net_price(gross, n):  # without the tax of rate n|", "<CR>", _long_file()),
)
