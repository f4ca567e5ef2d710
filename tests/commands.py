"""`hotloop ARGUMENTS` in processes of their own, forked from one that has imported the command line already.

A command spends half a second on imports; the tests give some hundred. The parent opens no engine and starts no
thread; every command has its own folder, environment, output and exit status, as from a shell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

PARENT = """
import json, os, signal, sys
import numpy, PIL.Image, PIL.PngImagePlugin
import hotloop.pipeline
from hotloop.cli import main
for line in sys.stdin:
    said = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(said["streams"][stream - 1], os.O_WRONLY), stream)
        os.chdir(said["cwd"])
        os.environ.clear()
        os.environ.update(said["environment"])
        sys.argv[1:] = said["arguments"]
        main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def parent() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def end() -> None:
    """At the end of the tests; what the commands took is then counted with them."""
    if parent.cache_info().currsize:
        parent().communicate()


def hotloop(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`hotloop ARGUMENTS` in a process of its own, with these variables beside this one's."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as error:
        said: dict[str, Any] = {"arguments": [str(one) for one in arguments], "cwd": str(cwd),
                                "environment": os.environ | environment, "streams": [out.name, error.name]}  # fmt: skip
        pipe = parent()
        assert pipe.stdin and pipe.stdout
        pipe.stdin.write(json.dumps(said) + "\n")
        status = int(pipe.stdout.readline())
        return subprocess.CompletedProcess(said["arguments"], status, out.read(), error.read())
