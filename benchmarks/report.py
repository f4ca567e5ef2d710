"""The benchmarks' results as tables, pictures and one page: report.md, *.png, index.html.

    python benchmarks/report.py                                  # the newest committed file of every benchmark
    python benchmarks/report.py benchmarks/results/local --out report
    python benchmarks/report.py --fill README.md docs/benchmarks.md [--check]  # between <!-- report:NAME begin/end -->

The same lines give the same bytes. A line that is not as result.schema.json says ends it, with one line that says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from reporting import plots
    from reporting.contents import sections
    from reporting.marked import MarkerError, filled, parts
    from reporting.page import page
    from reporting.results import RESULTS, Line, ResultsError, find, read, shown
    from reporting.section import Section
    from reporting.tables import as_markdown
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"[report] {missing.name} is not installed: pip install '.[bench]' in hotloop's folder")

TITLE = "hotloop: how fast, how faithful, how far from the limit"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "results", nargs="*", type=Path, default=[RESULTS], help="files, or folders: their newest files"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "report", help="folder for the report")
    parser.add_argument("--fill", type=Path, nargs="+", help="write the marked places of these files instead")
    parser.add_argument("--check", action="store_true", help="with --fill: change nothing, exit with 1 if one differs")
    options = parser.parse_args(arguments)
    if options.check and not options.fill:
        parser.error("--check needs --fill")
    try:
        lines = read(find(options.results))
        if options.fill:
            return max([_fill(path, lines, options.check) for path in options.fill])
        made = write(lines, options.out)
    except (ResultsError, MarkerError) as error:
        print(f"[report] {error}", file=sys.stderr)
        return 2
    print(f"{len(lines)} lines: {', '.join(map(shown, made))}")
    return 0


def write(lines: Sequence[Line], folder: Path) -> list[Path]:
    """The whole report in a folder (the two files are returned); pictures that are no longer in it go."""
    made = sections(lines)
    drawn = {one.name: plots.render(one.draw, one.name, one.alt) for section in made for one in section.pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if path.stem not in drawn:
            path.unlink()
    for name, (png, _) in drawn.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "report.md").write_text(markdown(made), encoding="utf-8")
    svgs = {name: svg for name, (_, svg) in drawn.items()}
    (folder / "index.html").write_text(page(TITLE, made, svgs), encoding="utf-8")
    return [folder / "report.md", folder / "index.html"]


def markdown(made: Sequence[Section]) -> str:
    parts = [f"# {TITLE}"]
    for section in made:
        parts += [f"## {section.title}", *section.text]
        parts += [f"![{one.alt}]({one.name}.png)" for one in section.pictures]
        parts += [as_markdown(table) for table in section.tables]
    return "\n\n".join(parts) + "\n"


def _fill(path: Path, lines: Sequence[Line], check: bool) -> int:
    text = path.read_text(encoding="utf-8")
    made, changed = filled(text, parts(lines, path.parent))
    for name in changed:
        print(f"{shown(path)}: report:{name} {'is not what the results give' if check else 'is new'}")
    if not check and changed:
        path.write_text(made, encoding="utf-8")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
