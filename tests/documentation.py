"""The README and everything in docs/, as the tests read them."""

import re

from conftest import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language; "" stands for those of shell commands."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [block for file in DOCUMENTS for block in pattern.findall(file.read_text())]


def python_examples() -> list[str]:
    return blocks("python")


def code() -> list[str]:
    """Every line of the shell blocks, continued ones joined, and every `span` in the text."""
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    prose = "\n".join(
        re.sub(r"^```.*?^```", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
        for file in DOCUMENTS
    )
    spans = re.findall(r"`([^`]+)`", prose)
    return [*lines, *(" ".join(span.split()) for span in spans)]
