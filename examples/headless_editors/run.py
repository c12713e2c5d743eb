"""Show what the users of real editors see: plugins as their makers publish them, at five places in a file.

    python examples/headless_editors/run.py llama.vim --url http://127.0.0.1:8012 --nvim nvim --plugin ~/llama.vim
    python examples/headless_editors/run.py minuet --url ... --nvim nvim --plugin ~/minuet-ai.nvim
    python examples/headless_editors/run.py tabby --url ... --plugin ~/node_modules/tabby-agent
    python examples/headless_editors/run.py lsp --url ... --nvim nvim

The server needs a model for code. `--places` names a file of other places, such as some in your own code. `lsp` is
`superdraft lsp` in Neovim's own client; it takes Neovim 0.11, whose ghost text for this does not exist yet, so the
items are shown.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from neovim import Neovim, as_seen, running, settled_ghost
from places import PLACES, Place, read_places
from tabby import ask_tabby

_SETTINGS = Path(__file__).parents[1] / "editors"
_ADDRESS = "http://127.0.0.1:8012"

_HERE = Path(__file__).parent
_RUN = "from superdraft.server.cli.main import main; main()"


def main() -> None:
    """Run one editor at all places."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor", choices=["llama.vim", "minuet", "tabby", "lsp"])
    parser.add_argument("--url", default=_ADDRESS)
    parser.add_argument("--nvim", default=shutil.which("nvim"))
    parser.add_argument("--plugin", type=Path, help="the plugin's folder")
    parser.add_argument("--places", type=Path, help="JSON lines with the fields of `places.Place`")
    given = parser.parse_args()
    for place in PLACES if given.places is None else read_places(given.places):
        print(f"{given.editor} {place.name}:")
        for line in _lines(given, place):
            print(f"    {line}")


def _lines(given: argparse.Namespace, place: Place) -> list[str]:
    if given.editor == "tabby":
        return ask_tabby(given.plugin, given.url, place)
    with running(given.nvim, _init(given), place) as editor:
        editor.type_at(place)
        return _items(editor) if given.editor == "lsp" else as_seen(settled_ghost(editor))


def _items(editor: Neovim) -> list[str]:
    time.sleep(1.0)
    state = editor.ghost()
    items = json.loads(editor.evaluate("luaeval('Items()')"))
    before = state["line"][: state["column"]]
    return [line for item in items for line in f"{before}[{item}]".split("\n")]


def _init(given: argparse.Namespace) -> str:
    if given.editor == "lsp":
        return _lua("lsp.lua", PYTHON=sys.executable, RUN=_RUN, URL=given.url)
    name = "llama.vim" if given.editor == "llama.vim" else "minuet.lua"
    settings = (_SETTINGS / name).read_text().replace(urlsplit(_ADDRESS).netloc, urlsplit(given.url).netloc)
    copy = Path(f"/tmp/{urlsplit(given.url).port}-{name}")  # noqa: S108
    copy.write_text(settings)
    return _lua("plugin.lua", PLUGIN=str(given.plugin), SETTINGS=str(copy))


def _lua(script: str, **values: str) -> str:
    """A script of this folder, with these values as its variables."""
    lines = [f"local {name} = {json.dumps(value)}\n" for name, value in values.items()]
    return "".join([*lines, (_HERE / script).read_text()])


if __name__ == "__main__":
    main()
