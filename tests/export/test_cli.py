"""The command: its statuses, its streams, and what it says to whoever made a slip."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pcsr.export import pipeline
from pcsr.export.cli import main
from pcsr.runtime import shipped_bundle
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BundleError, CheckError

COMMAND = Path(sys.executable).with_name("pcsr-export")


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, *, status: int = 2, reason: str) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return shutil.copytree(small_bundle, tmp_path / "copy")


def test_the_installed_command_makes_a_bundle_and_then_has_nothing_to_do(
    checkpoint: Path, target: Path
) -> None:
    command = [COMMAND, checkpoint, "-o", target, "--onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{target}: wrote fp32, fp16"
    assert "fp32: largest difference from PyTorch" in done.stdout
    assert "fp16 (emulated): largest magnitude" in done.stdout
    assert done.stderr == "building and checking fp32, fp16\n"
    again = export(checkpoint, "-o", target)
    assert again.exit_code == 0
    assert again.stdout == f"{target}: nothing to do, it has fp32, fp16\n"


def test_json_is_one_object(checkpoint: Path, target: Path) -> None:
    first = json.loads(export(checkpoint, "-o", target, "--precision", "fp32", "--json").stdout)
    second = json.loads(export(checkpoint, "-o", target, "--json").stdout)
    assert set(first) == {"bundle", "written", "kept", "errors", "compared_with", "largest_half"}
    assert (first["written"], first["kept"], first["largest_half"]) == (["fp32"], [], None)
    assert (second["written"], second["kept"]) == (["fp16"], ["fp32"])
    assert 0 < first["errors"]["fp32"] < 1e-5
    assert first["compared_with"] == "PyTorch"
    assert 0 < second["largest_half"][0] < 65504


def test_a_shipped_bundle_is_found_by_name(target: Path) -> None:
    shown = export("carn", "--inspect")
    assert shown.exit_code == 0, shown.output
    assert "carn, 52 channels" in shown.stdout
    copied = export("carn", "-o", target)
    assert copied.exit_code == 0, copied.output
    assert copied.stdout == f"{target}: wrote fp32, fp16, int8\n"
    assert read_bundle(target).manifest == read_bundle(shipped_bundle("carn")).manifest
    # Never in place: what is installed is not to be changed.
    assert_refused(export("carn"), reason="name the bundle to write")


def test_a_bundle_without_o_gets_what_it_lacks(checkpoint: Path, target: Path) -> None:
    export(checkpoint, "-o", target, "--precision", "fp32")
    result = export(target)
    first, second, *_ = result.stdout.splitlines()
    assert first == f"{target}: wrote fp16, kept fp32"
    # No checkpoint was given, so PyTorch did not run: nothing may say that it did.
    assert second.startswith(f"  fp16: largest difference from the fp32 graphs of {target} ")


def test_the_command_that_the_reader_names_adds_the_precision(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "a bundle with spaces"
    export(checkpoint, "-o", target, "--precision", " fp32 ,")
    with pytest.raises(BundleError) as caught:
        read_bundle(target).graphs("fp16")
    name, *arguments = shlex.split(str(caught.value).partition("with: ")[2])
    assert name == "pcsr-export"
    assert export(*arguments).exit_code == 0
    assert read_bundle(target).graphs("fp16")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.pth", "-o", "new"], "missing.pth"),
        (["checkpoint"], "name the bundle to write: pcsr-export checkpoint -o BUNDLE"),
        (["folder"], "folder is not a bundle"),
        (["folder", "-o", "new"], "folder is not a bundle"),
        (["checkpoint", "-o", "folder"], "exists and is no bundle"),
        (["checkpoint", "-o", "folder", "--force"], "exists and is no bundle"),
        (["checkpoint", "-o", "checkpoint", "--force"], "exists and is no bundle"),
        (["checkpoint", "-o", "."], "exists and is no bundle"),
        (["checkpoint", "-o", ""], "empty"),
        (["", "-o", "new"], "empty"),
        (["checkpoint", "-o", "new", "--precision", "int4"], "int4 is unknown"),
        (["checkpoint", "-o", "new", "--precision", "int8"], "int8 needs a calibration"),
        (["checkpoint", "-o", "new", "--calibration", "no.json"], "cannot read no.json"),
        (["checkpoint", "-o", "new", "--calibration", ""], "--calibration is empty"),
        (["checkpoint", "-o", "new", "--precision", ""], "(none) is unknown"),
        (["checkpoint", "-o", "bundle"], "--force"),
        (["bundle", "--inspect", "-o", "new"], "leave -o and --calibration away"),
        (["checkpoint", "--inspect"], "checkpoint is not a folder"),
        (["nothing", "--inspect"], "no bundle named 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_slip_ends_with_status_2_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    small_bundle: Path,
    arguments: Sequence[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, "checkpoint")
    shutil.copytree(small_bundle, "bundle")
    Path("folder").mkdir()
    Path("folder/precious").touch()
    before = sorted(tmp_path.rglob("*"))
    assert_refused(export(*arguments), reason=reason)
    after = [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".lock"]
    assert after == before


def test_missing_onnxruntime_is_status_2_with_the_command(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, target: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(export(checkpoint, "-o", target), reason="pip install 'pcsr[export,cpu]'")


@pytest.mark.parametrize("module", ["torch", "onnx", "filelock"])
def test_a_missing_extra_is_status_2_with_the_command(module: str, checkpoint: Path, target: Path) -> None:
    program = f"import sys; sys.modules[{module!r}] = None\nfrom pcsr.export.cli import main\nmain()"
    command = [sys.executable, "-c", program, checkpoint, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: exporting needs ")
    assert done.stderr.endswith("run: pip install 'pcsr[export,cpu]'\n")


def test_help_and_inspect_need_no_torch(copy: Path) -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from pcsr.export.cli import main\n"
        f"for arguments in (['--help'], [{str(copy)!r}, '--inspect']):\n"
        "    assert CliRunner().invoke(main, arguments).exit_code == 0\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_a_failed_check_is_status_3(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, target: Path) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise CheckError("fp32 graph backbone differs")

    monkeypatch.setattr(pipeline, "check_precision", failing)
    assert_refused(export(checkpoint, "-o", target), status=3, reason="fp32 graph backbone differs")
    assert not target.exists()


# --- inspection


def test_inspect_shows_network_costs_and_files(copy: Path) -> None:
    result = export(copy, "--inspect")
    assert result.exit_code == 0, result.stderr
    manifest = read_bundle(copy).manifest
    for words in (
        "fsrcnn, 12 channels",
        "class 1",
        "classifier",
        "MACs as run",
        manifest.weights.sha256[:12],
    ):
        assert words in result.stdout
    assert result.stdout.endswith("every file is as the manifest says\n")


def test_inspect_as_json_is_the_manifest(copy: Path) -> None:
    printed = json.loads(export(copy, "--inspect", "--json").stdout)
    assert printed == json.loads((copy / "manifest.json").read_text())


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_inspect_finds_a_changed_file(copy: Path, form: list[str]) -> None:
    entry = read_bundle(copy).manifest.graphs["fp16"]["upsampler_1"]
    (copy / entry.path).write_bytes(bytes(entry.bytes))
    assert_refused(export(copy, "--inspect", *form), reason="was changed or damaged")


def test_what_a_bundle_says_of_itself_is_shown_as_text(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["provenance"] |= {"note": "[/bold] [red]text[/red]", "[blink]": "\x1b[2Jkey"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = export(copy, "--inspect")
    assert result.exit_code == 0, result.exception
    assert "[/bold] [red]text[/red]" in result.stdout
    assert "[blink]" in result.stdout
    assert "\x1b[2J" not in result.stdout
