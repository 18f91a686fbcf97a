"""The verbs: `python -m jobs` lists them; `python -m jobs.VERB --help` has the keys of one."""

import ast
from pathlib import Path


def verbs() -> dict[str, str]:
    """The verbs, which are the modules of this folder that can be run, each with its line of description."""
    modules = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != "__main__.py")
    sources = {path.stem: path.read_text() for path in modules}
    runnable = {name: text for name, text in sources.items() if 'if __name__ == "__main__":' in text}
    return {name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in runnable.items()}


if __name__ == "__main__":
    print("\n".join(f"{name:<15} {text}" for name, text in verbs().items()))
