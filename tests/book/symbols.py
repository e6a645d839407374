"""The letters that formulas use, and those that the notation page lists."""

import re
from collections.abc import Iterator

from myst import walk

LETTERS = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta",
    "iota", "kappa", "lambda", "mu", "nu", "xi", "varpi", "rho", "varrho", "sigma", "varsigma",
    "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda",
    "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "pi",
}  # fmt: skip
WORDS = re.compile(
    r"\\(?:text|mathrm|operatorname|label|tag|begin|end)\*?\s*\{[^{}]*\}|\\mathbb\s*\{?[A-Z]\}?"
)
SCRIPT = re.compile(r"\\mathcal\s*\{?([A-Z])\}?")
ROW = re.compile(r"\| (?P<symbols>.*?) \| .* \| \[(?P<chapter>\d+)\]\(.*\) \|")


def formulas(text: str) -> Iterator[str]:
    """All formulas of a text, also those in boxes."""
    for token, box in walk(text):
        if token.type in ("math_block", "math_block_label", "amsmath"):
            yield token.content
        elif box and box.name == "math":
            yield box.body
        for child in token.children or []:
            if child.type in ("math_inline", "math_inline_double"):
                yield child.content


def letters(text: str) -> set[str]:
    r"""The letters of a text's formulas: x, \rho, \mathcal L; accents and indices are left out."""
    found = set()
    for formula in formulas(text):
        formula = WORDS.sub(" ", formula)
        found |= {rf"\mathcal {letter}" for letter in SCRIPT.findall(formula)}
        formula = SCRIPT.sub(" ", formula)
        found |= {rf"\{name}" for name in re.findall(r"\\([a-zA-Z]+)", formula) if name in LETTERS}
        found |= set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", " ", formula)))
    return found


def listed(notation: str) -> dict[str, int]:
    """Each letter of the notation page, and the first chapter that a row with it names."""
    first: dict[str, int] = {}
    for row in ROW.finditer(notation):
        for letter in letters(row["symbols"]):
            first[letter] = min(int(row["chapter"]), first.get(letter, 99))
    return first
