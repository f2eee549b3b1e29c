"""Polygraphy, set up for either TensorRT: what its comparator needs, and its report on what a parser cannot take."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pcsr.runtime.backends.engines import MODULES, Flavour
from pcsr.runtime.errors import BackendError

__all__ = ["set_up", "unsupported_nodes"]

REPORT_SECONDS = 300
# See `set_up`.
RENAME = """
import importlib, sys
sys.modules.setdefault("tensorrt_rtx", importlib.import_module("tensorrt_rtx_bindings"))
"""
TOOL = "import sys; from polygraphy.tools import main; sys.exit(main())"


def set_up(flavour: Flavour | None = None) -> None:
    """Find Polygraphy and tell it which TensorRT is meant; it believes the first that a process names.

    Args:
        flavour: None where no engine is run.

    Raises:
        BackendError: it, or this TensorRT, is not installed.
    """
    try:
        config: Any = importlib.import_module("polygraphy.config")
        log: Any = importlib.import_module("polygraphy.logger")
    except ImportError as error:
        raise BackendError(
            f"comparing needs Polygraphy ({error}); run: pip install 'pcsr[trt]', or 'pcsr[trt-rtx]'"
        ) from error
    # Standard output is for results.
    log.G_LOGGER.use_python_logging_system, log.G_LOGGER.colors = True, False
    if flavour is None:
        return
    config.USE_TENSORRT_RTX = flavour == "tensorrt-rtx"
    try:
        module = importlib.import_module(MODULES[flavour])
    except ImportError as error:
        raise BackendError(f"{MODULES[flavour]} cannot be imported ({error})") from error
    if flavour == "tensorrt-rtx":
        # Its wheels have it under another name than the package around them, for which Polygraphy looks.
        sys.modules.setdefault("tensorrt_rtx", module)


def unsupported_nodes(model: bytes, flavour: Flavour) -> str:
    """What Polygraphy's capability report says of a graph that a parser refused: a line for each node.

    Args:
        model: ONNX.
        flavour: whose parser.

    Returns:
        The nodes with their reasons; empty where Polygraphy is missing or has nothing to say.
    """
    rtx = flavour == "tensorrt-rtx"
    with tempfile.TemporaryDirectory() as folder:
        graph, results = Path(folder, "graph.onnx"), Path(folder, "report", "results.txt")
        graph.write_bytes(model)
        command = [sys.executable, "-P", "-c", (RENAME if rtx else "") + TOOL, "inspect", "capability"]
        try:
            subprocess.run(
                [*command, str(graph), "-o", str(results.parent)],
                env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": str(int(rtx)), "PYTHONWARNINGS": "ignore"},
                capture_output=True,
                timeout=REPORT_SECONDS,
                check=False,
            )
            report = results.read_text(encoding="utf-8", errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return ""
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()[1:] if "|" in line]
    # Stack trace, operator, node, reason; the first row has the names of the columns.
    return "; ".join(f"{row[2]} ({row[1]})" for row in rows[1:] if len(row) >= 4)
