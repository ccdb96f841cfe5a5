"""The README and everything in docs/, as the tests read them."""

import re

from tests.helpers import ROOT

# The commands in extending.md need its patches: its own test applies them. log.md is history: its
# commands and flags are those of the commits that it names.
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(set(ROOT.glob("docs/*.md")) - {ROOT / "docs/extending.md", ROOT / "docs/log.md"}),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""A block of code: its language and its text."""


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language; "" stands for those of shell commands."""
    found = [match for file in DOCUMENTS for match in FENCED.findall(file.read_text())]
    return [block for name, block in found if name == language]


def python_examples() -> list[str]:
    return blocks("python")


def code() -> list[str]:
    """Every line of the shell blocks, continued ones joined, and every `span` in the text."""
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    prose = "\n".join(FENCED.sub("", file.read_text()) for file in DOCUMENTS)
    spans = re.findall(r"`([^`]+)`", prose)
    return [*lines, *(" ".join(span.split()) for span in spans)]
