"""Checks of ONNX Runtime and its providers, and of whole bundles upscaling a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pcsr.runtime.doctor.gpu import install_gpu
from pcsr.runtime.doctor.report import Check, Status
from pcsr.runtime.trial import Trial

__all__ = ["check_onnxruntime", "check_provider", "check_upscaler", "provider_key", "providers_to_try"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Sends graphs of its own kind to a service; takes no node of any other.
REMOTE = "AzureExecutionProvider"
INSTALL_CPU = "pip install 'pcsr[cpu]'"

COLOURS = re.compile(r"\x1b\[[\d;]*m")
MISSING_LIBRARY = re.compile(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file")
LINE_LIMIT = 300


def check_onnxruntime(trial: Trial, *, distributions: Sequence[str], driver: Check) -> Check:
    """ONNX Runtime: one wheel of it, and that it can be imported.

    Args:
        trial: of `children.onnxruntime`.
        distributions: that bring a module of its name.
        driver: as checked.
    """
    facts = {**trial.facts, "distributions": list(distributions)}
    install = install_gpu(driver) if driver.works or "onnxruntime-gpu" in distributions else INSTALL_CPU
    version = f"{', '.join(distributions) or 'of no known package'} {facts.get('version', '')}".strip()
    if len(distributions) > 1:
        summary = f"{' and '.join(distributions)} are installed at once and overwrite one another"
        todo = f"pip uninstall -y {' '.join(distributions)} && {install}"
        return _onnxruntime("broken", summary, todo, facts, trial.noise)
    if trial.reason.startswith("ModuleNotFoundError: No module named 'onnxruntime'"):
        return _onnxruntime("missing", "not installed", install, facts)
    if not trial.ok:
        todo = f"pip uninstall -y {' '.join(distributions) or 'onnxruntime'} && {install}"
        return _onnxruntime("broken", f"{version}: {trial.reason} at its import", todo, facts, trial.noise)
    summary = f"{version}; lists {', '.join(facts['providers'])}"
    return _onnxruntime("ok", summary, "", facts)


def _onnxruntime(
    status: Status, summary: str, todo: str, facts: dict[str, object], output: str = ""
) -> Check:
    return Check("onnxruntime", "ONNX Runtime", "ONNX Runtime", status, summary, todo, facts, output)


def providers_to_try(trial: Trial) -> list[str]:
    """Listed providers that run graphs on this machine."""
    return [name for name in trial.value.get("providers", []) if name != REMOTE]


def provider_key(provider: str) -> str:
    """Key of a provider's check, like "onnxruntime.cuda"."""
    return f"onnxruntime.{provider.removesuffix('ExecutionProvider').lower()}"


def check_provider(provider: str, trial: Trial | None, *, onnxruntime: Check, driver: Check) -> Check:
    """One execution provider: that a session opened on it and a graph ran there.

    Args:
        provider: its name.
        trial: None where it is not listed.
        onnxruntime: as checked.
        driver: as checked.
    """
    install = install_gpu(driver) if provider == CUDA else INSTALL_CPU
    key = provider_key(provider)
    if trial is None:
        if not onnxruntime.works:
            return Check(key, "ONNX Runtime", provider, "missing", "ONNX Runtime does not work here")
        names = " ".join(onnxruntime.facts["distributions"]) or "onnxruntime"
        command = f"pip uninstall -y {names} && {install}"
        todo = command if driver.works or provider == CPU else f"only for NVIDIA GPUs: {command}"
        summary = f"this ONNX Runtime ({names}) does not have it"
        return Check(key, "ONNX Runtime", provider, "missing", summary, todo)
    facts = trial.facts
    got, nodes = facts.get("got", []), facts.get("nodes")
    if not trial.ok:
        problem = trial.failure
    elif got[:1] != [provider]:
        problem = f"ONNX Runtime gave {', '.join(got)} instead"
    elif nodes is not None and not nodes.get(provider):
        problem = f"no part of the graph ran on it, but on {', '.join(nodes)}"
    elif not facts["ran"]:
        problem = "the graph gave nonsense"
    else:
        share = f"; {nodes[provider]} of {sum(nodes.values())} nodes ran on it" if nodes else "; a graph ran"
        return Check(key, "ONNX Runtime", provider, "ok", f"works{share}", facts=facts)
    reason, missing = _why(trial.noise)
    summary = f"{problem}{': ' if reason else ''}{reason}"
    if provider not in (CPU, CUDA):
        summary += "; pcsr does not use it"
        return Check(key, "ONNX Runtime", provider, "warning", summary, "", facts, trial.noise)
    names = " ".join(onnxruntime.facts["distributions"]) or "onnxruntime"
    todo = install if provider == CUDA and missing else f"pip uninstall -y {names} && {install}"
    if provider == CUDA and not driver.works:
        todo = "see the driver"
    return Check(key, "ONNX Runtime", provider, "broken", summary, todo, facts, trial.noise)


def _why(noise: str) -> tuple[str, bool]:
    """What ONNX Runtime wrote about a failure, and whether that is a library that is not there."""
    plain = COLOURS.sub("", noise)
    if match := MISSING_LIBRARY.search(plain):
        return f"{match[1]} is not found", True
    lines = [line.strip() for line in plain.splitlines() if re.search(r"error|fail", line, re.IGNORECASE)]
    return (lines[-1][-LINE_LIMIT:] if lines else ""), False


def check_upscaler(bundle: str, backend: str, device: str, trial: Trial | None, *, needs: Check) -> Check:
    """A shipped bundle upscaling its sample picture.

    Args:
        bundle: its name.
        backend: that runs it.
        device: "cpu" or "cuda:0".
        trial: None where it was not tried, as what it needs does not work.
        needs: the check of that.
    """
    key = f"upscaler.{bundle}.{backend}.{device.partition(':')[0]}"
    title = f"{bundle}, {backend}, {device}"
    if trial is None:
        return Check(key, "Upscaler", title, "missing", f"not tried, as {needs.title} does not work here")
    facts = trial.facts
    if not trial.ok:
        todo = "reinstall pcsr; if that does not help, report it with this output"
        if not needs.works:
            todo = f"see {needs.title}"
        return Check(key, "Upscaler", title, "broken", trial.failure, todo, facts, trial.noise)
    summary = f"works, {facts['seconds']:.2f} s for {facts['pixels']} pixels ({facts['precision']})"
    return Check(key, "Upscaler", title, "ok", summary, facts=facts)
