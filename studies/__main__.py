"""Lists the studies: `python -m studies`."""

import ast
from pathlib import Path

for main in sorted(Path(__file__).parent.glob("*/__main__.py")):
    first = (ast.get_docstring(ast.parse(main.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    print(f"python -m studies.{main.parent.name:10} {first}")
