"""The size of the code beside its bars: `python -m benchmarks.code_size`, or `make sizes`.

A line of code is a line that holds a token other than a comment or a docstring; blank lines do not count.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

from pv_vae_jax.cli.main import COMMANDS

CLONE = Path(__file__).resolve().parents[1]
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
LARGE_CLASS = "VAEStep"  # the one class with a bar of its own


def code_lines(source: str) -> int:
    """Lines of `source` without docstrings, comments and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def sources(folder: str) -> dict[str, str]:
    """Path in the clone -> text of every Python file below `folder`."""
    return {p.relative_to(CLONE).as_posix(): p.read_text("utf-8") for p in sorted((CLONE / folder).rglob("*.py"))}


def class_lengths(package: dict[str, str]) -> dict[str, int]:
    """`path: class` -> lines of every class, docstrings and comments included."""
    return {
        f"{path}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, text in package.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }


def table() -> list[tuple[str, int, int | None, str]]:
    """Rows `(what, measured, bar or None, where)`."""
    package = sources("pv_vae_jax")
    classes = class_lengths(package)
    large = {name: size for name, size in classes.items() if name.endswith(f" {LARGE_CLASS}")}
    files = {path: len(text.splitlines()) for path, text in package.items()}
    file, one = max(files, key=files.__getitem__), max(classes.keys() - large, key=classes.__getitem__)
    rows = [
        ("lines of code in pv_vae_jax/", sum(map(code_lines, package.values())), 12_500, f"{len(package)} files"),
        ("longest file, all lines", files[file], 450, file),
        ("longest class, all lines", classes[one], 120, one),
        *((f"class {LARGE_CLASS}, all lines", size, 160, name) for name, size in large.items()),
        ("commands of pv-vae", len(COMMANDS), 11, ", ".join(COMMANDS)),
    ]
    # As many as the same code took before it left the package, and what came since: the motion study and the arena; the
    # set of benches for an accelerator, the chart, and the rehearsal at paper size, which needs the clone.
    for folder, bar in (("studies", 2_380 + 722 + 500), ("benchmarks", 2_896 + 34 + 40 + 69)):
        found = sources(folder)
        rows.append((f"lines of code in {folder}/", sum(map(code_lines, found.values())), bar, f"{len(found)} files"))
    return rows


def main() -> int:
    """Print the table; the exit status is 1 if a bar is exceeded."""
    found = table()
    for what, size, bar, where in found:
        over = bar is not None and size > bar
        print(f"{what:32}{size:>8,}{f'{bar:,}' if bar else '-':>8}  {'OVER' if over else 'ok':4}  {where}")
    return int(any(bar is not None and size > bar for _, size, bar, _ in found))


if __name__ == "__main__":
    sys.exit(main())
