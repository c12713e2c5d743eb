"""The README's program that drafts in its own process, as it is printed there."""

import re
from pathlib import Path

README = Path(__file__).parents[3] / "README.md"


def test_the_program_in_the_readme_prints_the_drafts_that_the_readme_names(default_gguf, capsys):
    (program,) = re.findall(r"```python\n(from superdraft\.decoding .*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 5
    exec(compile(program, str(README), "exec"), {})
    drafts = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert len(drafts) == len(set(drafts)) == 3
    assert all(draft.startswith("ow if you have any") for draft in drafts)
    named = re.findall(r'"(ow [^"]*)"', README.read_text().replace("\n", " "))
    assert len(named) == 3
    assert drafts[0] == named[0]  # the others may differ with the processor's rounding
