"""The list of verbs: `python -m jobs`. The keys of a verb: `python -m jobs.VERB --help`."""

import ast
from pathlib import Path


def verbs() -> dict[str, str]:
    """The first docstring line of each verb, by name. A verb is a module of this folder that can be run."""
    modules = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != "__main__.py")
    sources = {path.stem: path.read_text() for path in modules}
    runnable = {name: text for name, text in sources.items() if 'if __name__ == "__main__":' in text}
    return {name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in runnable.items()}


if __name__ == "__main__":
    print("\n".join(f"{name:<15} {text}" for name, text in verbs().items()))
