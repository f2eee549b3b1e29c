"""Accuracy regression as a job of continuous integration: several bundles, each against its own baseline.

    python scripts/accuracy_regression.py bundles/carn bundles/fsrcnn --data photos --baselines baselines

Each bundle (a folder, or the name of one that ships) is run over the pictures and compared with
BASELINES/<name of the bundle>.json. A set that fell by more than --max-drop, a picture that could not be
compared, a missing baseline and a missing bundle all fail the job; the other bundles are still run. `--update`
writes the baselines anew: look at the tables first, and commit the files, so that a review sees what changed.

Status: 0 all passed, 1 a picture could not be compared, 2 usage, 3 a check failed.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from pcsr.runtime.console import Status, exit_on_error, start_logging
from pcsr.runtime.errors import OptionError, PcsrError
from pcsr.validation import Rule, Settings, validate
from pcsr.validation.baseline import write_baseline
from pcsr.validation.cli import output_console, parse_scales, watching
from pcsr.validation.run import Report, baseline_of, write_report
from pcsr.validation.tables import print_report


@click.command()
@click.argument("bundles", nargs=-1, required=True)
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures, or of sets."
)
@click.option("--baselines", required=True, type=click.Path(path_type=Path), help="Folder of the baselines.")
@click.option("-s", "--scale", "scales", default="4", show_default=True, help="Scales, like 2,3,4.")
@click.option("--adaptive/--no-adaptive", default=True, help="Gate the adaptive decision.")
@click.option("--budget", "budgets", type=float, multiple=True, help="Also gate this budget; several times.")
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N pictures of each set.")
@click.option("--max-drop", type=float, default=0.01, show_default=True, help="dB.")
@click.option("--reports", type=click.Path(path_type=Path), help="Folder for a JSON report of each bundle.")
@click.option("--update", is_flag=True, help="Write the baselines instead of comparing with them.")
@exit_on_error()
def main(
    *,
    bundles: tuple[str, ...],
    data: Path,
    baselines: Path,
    scales: str,
    adaptive: bool,
    budgets: tuple[float, ...],
    threads: int | None,
    limit: int | None,
    max_drop: float,
    reports: Path | None,
    update: bool,
) -> None:
    """Run each of BUNDLES over the pictures and compare it with its baseline."""
    start_logging()
    names = [Path(bundle).resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        raise OptionError("two bundles have the same name, and so the same baseline; rename one")
    rules = [Rule("k", 0.0), *([Rule("adaptive")] if adaptive else [])]
    settings = Settings(
        scales=parse_scales(scales),
        rules=(*rules, *(Rule("budget", budget) for budget in budgets)),
        threads=threads,
        max_drop=max_drop,
        limit=limit,
    )
    for folder in (baselines, reports):
        if folder is not None and not folder.is_dir():
            raise OptionError(f"{folder} is no folder; make it first")
    lines, statuses = [], []
    for bundle, name in zip(bundles, names, strict=True):
        baseline = baselines / f"{name}.json"
        try:
            report = run(bundle, data, settings, None if update else baseline)
        except PcsrError as error:
            lines.append(f"{name}: FAILED: {error}")
            statuses.append(Status.CHECK_FAILED)
            continue
        if reports is not None:
            write_report(reports / f"{name}.json", report)
        if update and report.status == Status.DONE:
            write_baseline(baseline, baseline_of(report))
            lines.append(f"{name}: wrote {baseline}")
        else:
            lines.append(f"{name}: {report.verdict}")
        statuses.append(Status(report.status))
    for line in lines:
        click.echo(line)
    failed = [name for name, status in zip(names, statuses, strict=True) if status != Status.DONE]
    click.echo(f"FAILED: {', '.join(failed)}" if failed else "UPDATED" if update else "PASSED")
    sys.exit(max(statuses))


def run(bundle: str, data: Path, settings: Settings, baseline: Path | None) -> Report:
    """Validate one bundle and print what was found."""
    with watching(data, scales=len(settings.scales), limit=settings.limit) as watch:
        report = validate(
            bundle, data, settings, baseline=baseline, command=shlex.join(sys.argv), watch=watch
        )
    print_report(report, output_console())
    return report


if __name__ == "__main__":
    main()
