"""The benchmark's folders: how busy computing is kept, beside reading and encoding."""

import json
from collections.abc import Callable
from pathlib import Path

from bench import main
from click.testing import CliRunner

from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network


def test_both_folders_are_timed_and_their_shares_are_of_the_wall_time(
    random_network: Callable[..., Network], tmp_path: Path
) -> None:
    save_checkpoint(random_network(), tmp_path / "small.safetensors")
    asked = [str(tmp_path / "small.safetensors"), "--folder", "2", "--threads", "1", "--markdown"]
    done = CliRunner().invoke(main, [*asked, "--json", str(tmp_path / "folder.json")])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "folder.json").read_text())
    assert told["threads"] == 1
    assert set(told["folders"]) == {".png", ".jpg"}
    for found in told["folders"].values():
        assert found["pictures"] == 2
        assert 0 < found["shares"]["computing"] <= 1
    assert "| 2 png |" in done.stdout
