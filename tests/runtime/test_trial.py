"""What a child process does, however bad, is a finding; this process goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pcsr.runtime import trial
from pcsr.runtime.trial import run_trial, run_trials

# Far more than an interpreter needs to start, on a machine with other work.
LIMIT = 60


def test_all_that_was_reported_is_the_result() -> None:
    found = run_trial("report(step=1, kept=[True, None])\nreport(step=2, ä='ß\\n')", timeout=LIMIT)
    assert found.ok
    assert found.value == {"step": 2, "kept": [True, None], "ä": "ß\n"}
    assert (found.reason, found.signal, found.noise) == ("", None, "")
    assert 0 < found.seconds < LIMIT


def test_what_modules_and_libraries_print_is_kept_apart_from_the_result() -> None:
    code = """
import os
os.write(1, b'{"native": true}\\n')
print('{"a module": 1}', flush=True)
os.write(2, b"native error\\n")
report(ours=1)
"""
    found = run_trial(code, timeout=LIMIT)
    assert found.ok
    assert found.value == {"ours": 1}
    assert found.noise.splitlines() == ['{"native": true}', '{"a module": 1}', "native error"]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGKILL"])
def test_a_crash_is_named_and_what_was_said_before_it_kept(name: str) -> None:
    code = f"import os, signal\nreport(step='Builder')\nos.kill(os.getpid(), signal.{name})"
    found = run_trial(code, timeout=LIMIT)
    assert (found.ending, found.signal, found.value) == ("crashed", name, {"step": "Builder"})
    assert name in found.reason


def test_a_crash_after_the_result_is_still_a_crash() -> None:
    code = "import atexit, os, signal\nreport(fine=1)\natexit.register(os.kill, os.getpid(), signal.SIGSEGV)"
    found = run_trial(code, timeout=LIMIT)
    assert (found.ok, found.ending, found.value) == (False, "crashed", {"fine": 1})


def test_a_hang_is_ended_with_everything_it_started() -> None:
    code = """
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
report(pid=grandchild.pid)
time.sleep(600)
"""
    started = time.monotonic()
    found = run_trial(code, timeout=5)
    assert time.monotonic() - started < 30
    assert (found.ending, found.reason) == ("timed out", "did not end within 5 s")
    assert _ends(found.value["pid"])


def _ends(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has buried yet."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_an_exception_is_the_reason_in_one_line() -> None:
    found = run_trial("report(step=1)\nraise ValueError('two\\nlines  and more')", timeout=LIMIT)
    assert (found.ending, found.reason) == ("raised", "ValueError: two lines and more")
    assert found.value == {"step": 1}
    assert "Traceback" in found.noise


def test_code_that_is_no_python_is_reported() -> None:
    found = run_trial("def", timeout=LIMIT)
    assert found.ending == "exited"
    assert "SyntaxError" in found.noise


@pytest.mark.parametrize("how", ["os._exit({})", "sys.exit({})"])
@pytest.mark.parametrize("status", [0, 7])
def test_code_that_ends_the_process_before_its_end_is_not_done(how: str, status: int) -> None:
    found = run_trial(f"import os, sys\nreport(step=1)\n{how.format(status)}", timeout=LIMIT)
    assert (found.ending, found.value) == ("exited", {"step": 1})
    assert found.reason == f"ended by itself with status {status}"


def test_what_json_cannot_hold_is_an_exception_of_the_code() -> None:
    found = run_trial("report(x=object())", timeout=LIMIT)
    assert found.ending == "raised"
    assert "not JSON serializable" in found.reason


def test_noise_is_bounded_and_bytes_of_no_encoding_do_no_harm() -> None:
    code = "import os\nos.write(2, b'\\xff' * 300_000 + b'end')"
    found = run_trial(code, timeout=LIMIT)
    assert found.ok
    assert found.noise.endswith("end")
    assert len(found.noise) == trial.NOISE_LIMIT


def test_an_interpreter_that_is_not_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found = run_trial("report()", timeout=LIMIT)
    assert found.ending == "not started"
    assert "/nowhere/python" in found.reason


def test_a_trial_imports_nothing_from_the_current_folder_and_leaves_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("")
    found = run_trial("import trap", timeout=LIMIT)
    assert "No module named 'trap'" in found.reason
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = run_trial("import os, trap\nreport(imported=1)\nos.abort()", timeout=LIMIT)
    assert (found.value, found.signal) == ({"imported": 1}, "SIGABRT")
    assert [path.name for path in tmp_path.iterdir()] == ["trap.py"]


def test_several_run_at_once_and_come_back_in_order(tmp_path: Path) -> None:
    # Each waits for the other: one after the other they would never end.
    code = """
import os, time
open({mine!r}, "x").close()
while not os.path.exists({other!r}):
    time.sleep(0.01)
report(met=1)
"""
    places = {name: str(tmp_path / name) for name in ("a", "b")}
    codes = {
        "a": code.format(mine=places["a"], other=places["b"]),
        "b": code.format(mine=places["b"], other=places["a"]),
        "c": "",
    }
    ended: list[int] = []
    found = run_trials(codes, timeout=LIMIT, workers=2, progress=lambda: ended.append(1))
    assert list(found) == ["a", "b", "c"]
    assert found["a"].ok
    assert found["b"].ok
    assert found["c"].ok
    assert len(ended) == 3


def test_an_interruption_ends_the_children_at_once() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    codes = {"quick": "", "slow": f"import time; time.sleep({LIMIT})", "later": ""}
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_trials(codes, timeout=LIMIT, workers=2, progress=interrupt)
    assert time.monotonic() - started < LIMIT / 2


def _to_the_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _to_this_thread() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.mark.parametrize("ctrl_c", [_to_the_process, _to_this_thread])
def test_ctrl_c_ends_the_children_at_once_whichever_thread_gets_it(ctrl_c: Callable[[], None]) -> None:
    timer = threading.Timer(1.0, ctrl_c)
    started = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_trials({"slow": f"import time; time.sleep({LIMIT})"}, timeout=LIMIT, workers=1)
    timer.join()
    assert time.monotonic() - started < LIMIT / 2
