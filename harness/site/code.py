"""Source code as highlighted HTML, with equations beside the lines that implement them."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

from twinloss.harness.site.formulas import mathml


@dataclass(frozen=True)
class CodeLine:
    """A line of code: its number, HTML, what is shown beside it, and whether it is hidden at first."""

    number: int
    code: str
    beside: str
    quiet: bool


@cache
def _tools() -> tuple[Any, Any, Any]:
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonConsoleLexer, PythonLexer

    return HtmlFormatter(nowrap=True), PythonLexer(stripnl=False, ensurenl=True), PythonConsoleLexer()


def highlighted(source: str) -> str:
    """Return Python code as HTML, without a frame."""
    from pygments import highlight

    formatter, python, _ = _tools()
    return str(highlight(source, python, formatter))


def session(text: str) -> str:
    """Return a doctest as HTML."""
    from pygments import highlight

    formatter, _, console = _tools()
    return f'<pre class="code" tabindex="0">{highlight(text, console, formatter)}</pre>'


def block(source: str) -> str:
    """Return Python code as HTML."""
    return f'<pre class="code" tabindex="0">{highlighted(source)}</pre>'


def lines(source: str, beside: Mapping[str, str]) -> list[CodeLine]:
    """Return all lines of a module.

    Args:
        source: the text of the module.
        beside: maps a piece of code to the LaTeX formula that the lines with this piece implement.
    """
    text, comments = _without_comments(source)
    shown = highlighted(text).rstrip("\n").split("\n")
    quiet = _docstring_lines(source)
    hidden = quiet | _import_lines(source)
    made = []
    for number, (code, bare) in enumerate(zip(shown, text.splitlines(), strict=True), 1):
        math = [mathml(latex) for piece, latex in beside.items() if piece in bare and number not in quiet]
        said = [f"<span>{escape(comments[number])}</span>"] if number in comments else []
        made.append(CodeLine(number, code, " ".join(math + said), number in hidden))
    return made


def unused(source: str, beside: Mapping[str, str]) -> list[str]:
    """Return the pieces of code that no line contains, so that their equations would not be shown."""
    quiet = _docstring_lines(source)
    bare = [line for n, line in enumerate(_without_comments(source)[0].splitlines(), 1) if n not in quiet]
    return [piece for piece in beside if not any(piece in line for line in bare)]


def _without_comments(source: str) -> tuple[str, dict[int, str]]:
    """Return the code without trailing comments, and these comments by line number."""
    rows, comments = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type != tokenize.COMMENT or token.string.startswith(("# type:", "# noqa")):
            continue
        code = rows[row - 1][:column].rstrip()
        if code:
            comments[row] = token.string.removeprefix("#").strip()
            rows[row - 1] = code
    return "\n".join(rows) + "\n", comments


def _docstring_lines(source: str) -> set[int]:
    """Return the lines of all docstrings, except the first line of each."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for string in _docstring(node):
            found |= set(range(string.lineno + 1, (string.end_lineno or string.lineno) + 1))
    return found


def _import_lines(source: str) -> set[int]:
    """Return the lines of imports, and the empty lines between and after them."""
    nodes = ast.parse(source).body
    found = [n for n, node in enumerate(nodes) if isinstance(node, ast.Import | ast.ImportFrom)]
    if not found:
        return set()
    after = nodes[found[-1] + 1] if found[-1] + 1 < len(nodes) else nodes[-1]
    first = min([after.lineno, *(each.lineno for each in getattr(after, "decorator_list", []))])
    rows = source.splitlines()
    while first > 1 and rows[first - 2].startswith("#"):
        first -= 1
    return set(range(nodes[found[0]].lineno, first))


def _docstring(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        first = node.body[0]
        if isinstance(first, ast.Expr):
            yield first.value


def styles() -> str:
    """Return the colours of Pygments as CSS, for light and dark pages."""
    from pygments.formatters import HtmlFormatter

    dark = HtmlFormatter(style="github-dark")
    light = HtmlFormatter(style="default").get_style_defs(":root .code")
    by_system = "@media (prefers-color-scheme: dark) {\n" + dark.get_style_defs(":root:not(.light) .code") + "\n}"
    # The default colours of these have too little contrast on the grey background.
    darker = (
        ":root .code .c1, :root .code .go { color: var(--soft) } :root .code .nd, :root .code .gr { color: var(--c2) }"
    )
    return f"{light}\n{darker}\n{by_system}\n{dark.get_style_defs(':root.dark .code')}\n"
