"""Where the tests find reference material that is not part of the repository."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pcsr.model.network import Network

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Ctrl-C reaches the tests that send it, also where a background job was started with it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference checkpoints, golden cases and test pictures (`PCSR_SHARED`).

    A stranger's clone has none: the tests that need it skip and say so. With `PCSR_REQUIRE_SHARED=1` such
    a skip is a failure, so that continuous integration cannot pass by having nothing to compare with.
    """
    folder = Path(os.environ.get("PCSR_SHARED", ROOT.parent / "shared")).resolve()
    if not (folder / "reference" / "golden" / "manifest.json").is_file():
        reason = f"no reference material at {folder} (set PCSR_SHARED to the folder that has it)"
        if os.environ.get("PCSR_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Test data that lies in the repository."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tests run side by side: each keeps PyTorch to one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small network with random weights (FSRCNN, two classes), both precisions."""
    return _random_bundle(tmp_path_factory, "small", upsamplers=((6, 6), (16, 16)))


@pytest.fixture(scope="session")
def three_class_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small network with random weights and three classes."""
    return _random_bundle(tmp_path_factory, "three", upsamplers=((6,), (10, 10), (16, 16)))


def _random_bundle(
    factory: pytest.TempPathFactory, name: str, *, upsamplers: tuple[tuple[int, ...], ...]
) -> Path:
    from pcsr.export.pipeline import export_bundle
    from pcsr.model.checkpoint import save_checkpoint

    folder = factory.mktemp(name)
    save_checkpoint(_random_network(upsamplers=upsamplers), folder / "random.safetensors")
    export_bundle(folder / "random.safetensors", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def random_network() -> Callable[..., Network]:
    """A function that makes small networks with random weights."""
    return _random_network


def _random_network(
    *, backbone: str = "fsrcnn", width: int = 12, upsamplers: tuple[tuple[int, ...], ...] = ((6, 6), (16, 16))
) -> Network:
    """A small network whose random weights are large enough to send pixels to every class."""
    import skimage.data
    import torch

    from pcsr.model.network import NetworkSpec, build

    photo = torch.from_numpy(skimage.data.chelsea()[60:110, 120:187] / 255.0).float().permute(2, 0, 1)[None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        network = build(NetworkSpec(backbone, width, upsamplers, (8,), mean=(0.4, 0.5, 0.45)))
        assert network.classifier is not None
        features = network.backbone(photo)[0].flatten(1).T
        geometry = torch.cat([torch.rand(len(features), 2) - 0.5, torch.full((len(features), 2), 0.5)], dim=1)
        # Standardised logits: every class wins somewhere on a photograph.
        first, last = network.classifier.linears[0], network.classifier.linears[-1]
        first.weight[:, :width] /= features.std()
        first.weight[:, width + 2 :] *= 0.1
        logits = network.classifier(torch.cat([features, geometry], dim=1))
        last.weight /= logits.std(dim=0)[:, None]
        last.bias.copy_((last.bias - logits.mean(dim=0)) / logits.std(dim=0))
        for head in network.heads:
            head.linears[-1].weight.mul_(0.5)
            head.linears[-1].bias.zero_()
    return network


@pytest.fixture(scope="session")
def carn_bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' CARN-PCSR, exported."""
    return _official_bundle(shared, tmp_path_factory, "carn-pcsr.pth")


@pytest.fixture(scope="session")
def fsrcnn_bundle(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' FSRCNN-PCSR, exported."""
    return _official_bundle(shared, tmp_path_factory, "fsrcnn-pcsr.pth")


def _official_bundle(shared: Path, factory: pytest.TempPathFactory, name: str) -> Path:
    from pcsr.export.pipeline import export_bundle

    bundle = factory.mktemp(name) / "bundle"
    export_bundle(shared / "reference" / "official" / name, bundle)
    return bundle
