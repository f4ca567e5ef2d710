"""How Sphinx builds these pages: `make docs`. The pages are Markdown that also reads well where no one builds it."""

from __future__ import annotations

import re
from typing import Any

import hotloop

project = "hotloop"
author = "the hotloop authors"
release = version = hotloop.__version__
html_title = "hotloop"
copyright = "the hotloop authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name` for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["hotloop.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"

# "name   what it is", its further lines indented as far: how docstrings here list fields and arguments.
_ENTRY = re.compile(r"^(?P<name>\S[^.]*?) {2,}(?P<said>\S.*)$")
# "width, height: pixels": arguments told one after the other; each begins a line.
_ARGUMENT = re.compile(r"^(?P<names>[a-z_]+(, [a-z_]+)*)(?=:\s| in \()|^(?=Raises )")
_SPECIAL = re.compile(r"(?<!\\)([*|]|(?<=\w)_(?!\w))")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of this project, which is plain text, as reStructuredText that says the same.

    Lists of names become definition lists; indented code becomes a literal block; an argument that begins a line begins
    a paragraph; signs with a meaning in reStructuredText are taken as they stand.
    """
    made: list[str] = []
    inside, column = "", 0  # "entry" in a list of names whose text begins at the column, "code" in an indented block
    for line in lines:
        indented = line.startswith("  ")
        entry = _ENTRY.match(line)
        if inside == "entry" and not indented and not entry and line[column - 1 : column] == " ":
            name, said = line[: column - 1].strip(), line[column:]  # a name as long as the list's widest
        elif entry:
            name, said, column = entry["name"], entry["said"], entry.start("said")
        elif inside == "entry" and indented:
            made.append("    " + _plain(line.strip()))
            continue
        elif inside == "code" and (indented or not line.strip()):
            made.append(line)
            continue
        elif indented and not inside and not "".join(made[-1:]).strip():
            made += ["::", "", line]
            inside = "code"
            continue
        else:
            argument = _ARGUMENT.match(line)
            made += [""] * bool(inside or argument)
            names = (argument and argument["names"]) or ""
            made.append(f"``{names}``{_plain(line[len(names) :])}" if names else _plain(line.strip()))
            inside = ""
            continue
        made += [""] * (inside != "entry") + [f"``{name}``", "    " + _plain(said)]
        inside = "entry"
    return [*made, ""]


def _plain(text: str) -> str:
    """Escaped outside of `code`."""
    parts = text.split("`")
    return "`".join(part if i % 2 else _SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _docstring)
