"""Every graph of every kind of network, built into plans without a GPU; and the parts of the builder by themselves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
import yaml

from pcsr.export.graphs import build_graphs
from pcsr.export.pipeline import serialise
from pcsr.export.rewrites import rewrite
from pcsr.export.sources import cost_table, network_entry
from pcsr.export.tensorrt.builder import UnsupportedGraphError, build_plan, nested_share
from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.model.network import NetworkSpec, build
from pcsr.runtime import shipped_bundle
from pcsr.runtime.backends.engines import Identity, Profile, Range, Tuning
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.manifest import FileEntry, Manifest, Normalisation, Precision

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
CHIPS = ("8.6", "8.9", "12.0")


def identity(graph: str, precision: Precision, profiles: tuple[Profile, ...]) -> Identity:
    return Identity(
        graph=graph,
        precision=precision,
        graph_sha256="0" * 64,
        flavour="tensorrt-rtx",
        version="1.7",
        platform="here",
        compute_capabilities=CHIPS,
        gpu="",
        profiles=profiles,
        tuning=Tuning(),
    )


def graphs_and_profiles(
    config: Path, *, half: bool
) -> tuple[dict[str, bytes], dict[str, tuple[Profile, ...]]]:
    """Graphs of a network of the real size with random weights, and what they are built for."""
    fields = yaml.safe_load(config.read_text())["network"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build(
            NetworkSpec(
                fields["backbone"],
                fields["width"],
                tuple(tuple(hidden) for hidden in fields["upsamplers"]),
                tuple(fields["classifier"]),
                mean=(0.4, 0.5, 0.45),
                options=tuple((fields.get("options") or {}).items()),
            )
        )
    normalisation = Normalisation(mean=network.spec.mean, std=network.spec.std)
    nothing = FileEntry(path="nothing", bytes=1, sha256="0" * 64)
    manifest = Manifest(
        format="pcsr-bundle",
        version=1,
        network=network_entry(network),
        normalisation=normalisation,
        halo=network.halo,
        working_bytes=1,
        cost=cost_table(network),
        weights=nothing,
        sample=nothing,
        graphs={"fp32": {"backbone": nothing}},
        provenance={},
    )
    sizes = Sizes()
    sizes.check(manifest)
    models = build_graphs(manifest.network, normalisation, rewrite(network), half=half)
    built = {name: serialise(model) for name, model in models.items()}
    return built, dict(graph_profiles(manifest, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_graph_becomes_a_plan_for_three_chips(config: Path, precision: Precision) -> None:
    models, profiles = graphs_and_profiles(config, half=precision == "fp16")
    assert len(models) == (5 if config.stem == "carn-m3" else 4)
    plans = {
        graph: build_plan(model, identity(graph, precision, profiles[graph]), lambda share: True)
        for graph, model in models.items()
    }
    assert set(plans) == set(models)
    # Kernels for three chips: well beyond what a header takes, and more than the weights alone.
    assert all(len(plan) > 100_000 for plan in plans.values())


def test_the_plan_holds_what_was_asked_for() -> None:
    """More GPUs take more room, and a second profile too: neither is dropped in silence."""
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    model = bundle.read(bundle.graphs("fp16")["backbone"])
    profiles = graph_profiles(bundle.manifest, Sizes())["backbone"]
    assert len(profiles) == 2
    full = identity("backbone", "fp16", profiles)
    fewer = msgspec.structs.replace(full, compute_capabilities=("8.9",))
    single = msgspec.structs.replace(full, profiles=profiles[:1])
    whole, one_chip, one_profile = (
        len(build_plan(model, each, lambda s: True)) for each in (full, fewer, single)
    )
    assert one_profile < 0.7 * whole
    assert one_chip < whole


@pytest.mark.parametrize(
    ("model", "reason"),
    [(b"hello", "inputs"), (b"", "inputs"), (None, "does not take graph classifier: .*Failed to parse")],
    ids=["text", "nothing", "cut short"],
)
def test_what_is_no_graph_is_refused(model: bytes | None, reason: str) -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    whole = bundle.read(bundle.graphs("fp32")["classifier"])
    profiles = graph_profiles(bundle.manifest, Sizes())["classifier"]
    with pytest.raises(BackendError, match=reason):
        build_plan(
            whole[:500] if model is None else model, identity("classifier", "fp32", profiles), lambda s: True
        )


def test_profiles_of_other_inputs_are_refused() -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    model = bundle.read(bundle.graphs("fp32")["classifier"])
    wrong: tuple[Profile, ...] = ({"lr": Range(min=(1,), opt=(1,), max=(1,))},)
    with pytest.raises(
        BackendError, match="has the inputs table, rows, columns, row_terms, column_terms, not"
    ):
        build_plan(model, identity("classifier", "fp32", wrong), lambda share: True)


def test_a_builder_can_be_stopped() -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    model = bundle.read(bundle.graphs("fp32")["classifier"])
    profiles = graph_profiles(bundle.manifest, Sizes())["classifier"]
    with pytest.raises(BackendError, match="canceled"):
        build_plan(model, identity("classifier", "fp32", profiles), lambda share: False)
    assert issubclass(UnsupportedGraphError, BackendError)


@pytest.mark.parametrize(
    ("phases", "share"),
    [
        ([], 0),
        ([(1, 4)], 0.25),
        ([(1, 4), (5, 10)], 0.375),
        ([(0, 2), (0, 2), (1, 2)], 0.125),
        ([(4, 4), (0, 9)], 1),
    ],
)
def test_nested_phases_add_up(phases: list[tuple[int, int]], share: float) -> None:
    assert nested_share(phases) == pytest.approx(share)
