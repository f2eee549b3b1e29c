"""Run a command and print its wall seconds and the bytes of its largest resident size.

A process of its own, and a small one: Linux counts to a child's peak what its parent held when it started it.

    python scripts/bench_launch.py FILE_FOR_OUTPUT COMMAND…

Status: the command's, or 1 where a signal ended it.
"""

import os
import platform
import sys
import time

# Of ru_maxrss: kilobytes, except on macOS.
UNIT = 1 if platform.system() == "Darwin" else 1024


def main() -> int:
    """Run it."""
    said, *command = sys.argv[1:]
    opened = (os.POSIX_SPAWN_OPEN, 1, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    started = time.perf_counter()
    process = os.posix_spawn(
        command[0], command, os.environ, file_actions=[opened, (os.POSIX_SPAWN_DUP2, 1, 2)]
    )
    _, status, usage = os.wait4(process, 0)
    print(time.perf_counter() - started, usage.ru_maxrss * UNIT)
    exited = os.waitstatus_to_exitcode(status)
    return exited if exited >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
