"""``alhvr benchmark``: run a suite, and write its tables and plots.

What it needs is imported inside the function: pydantic, YAML and NumPy take a while, and ``--help`` should not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alhvr_trainer.cluster import scheduler as on_cluster
from alhvr_trainer.errors import InputError


def benchmark(
    suite: str,
    output: str | None = None,
    methods: str | Sequence[str] | None = None,
    table: str | None = None,
    seeds: int | Sequence[int] | None = None,
    folds: str | Sequence[str] | None = None,
    device: str = "cuda",
    parallel: int = 1,
    tables_only: bool = False,
    remove_checkpoints: bool = False,
    scheduler: str | None = None,
) -> Path:
    """Run methods × seeds × labeled fractions on a data set, and write tables and box plots.

    Each run trains, segments with the last and with the best checkpoint, measures Dice, Jaccard, HD95 and ASD of every
    case, and leaves one small file in OUTPUT/runs. Runs whose file is there are skipped and an interrupted training
    continues from its latest checkpoint, so the same command resumes. Started twice, two processes share the runs. The
    suite's settings must not change below finished runs: that is an error.

    Args:
        suite: phantom-quick, hippocampus-cpu, hippocampus-augmentation, hippocampus-lengths, acdc-cpu, acdc-quick,
            acdc, abdomenct1k, brats2019, or a YAML file.
        output: folder for runs, logs, tables and plots; default: benchmark_SUITE.
        methods: only these, separated by commas.
        table: only the methods of this table: comparison, ablation or regions.
        seeds: only these.
        folds: only these labeled fractions, by name.
        device: "cuda", "cpu" or "mps".
        parallel: runs at a time, each a process; they share the card, or on the CPU the cores.
        tables_only: run nothing, write tables and plots of the runs that are there.
        remove_checkpoints: of finished runs, to save disk space.
        scheduler: address of a Dask cluster, whose workers take the runs: docs/cluster.md.

    Returns:
        The report, OUTPUT/report.md; beside it lies the same as a page, report.html.

    Raises:
        InputError: bad suite, data or arguments; or runs failed: the others were done, and the failed ones are named.

    Example:
        alhvr benchmark --suite phantom-quick --device cpu
        alhvr benchmark --suite hippocampus-cpu --device cpu --methods Supervised,ALHVR --seeds 0
        alhvr benchmark --suite hippocampus-cpu --device cpu --table ablation
    """
    from alhvr_trainer.config.files import check_whole_number
    from alhvr_trainer.experiments.benchmark.jobs import RUNS, read_results
    from alhvr_trainer.experiments.benchmark.running import run_suite
    from alhvr_trainer.experiments.benchmark.suites import load_suite

    chosen = load_suite(suite)
    folder = Path(output or f"benchmark_{chosen.name}").resolve()
    failures: list[str] = []
    if table is not None and methods is not None:
        raise InputError("name either --methods or the --table whose methods to run")
    names = _list(methods) if table is None else chosen.methods_of(table)
    if not tables_only:
        part = {"methods": names, "seeds": _list(seeds), "folds": _list(folds)}
        if check_whole_number("parallel", parallel) > 1 and scheduler is not None:
            raise InputError("--parallel is for one machine; with --scheduler, each worker of the cluster has one run")
        with on_cluster(scheduler):
            failures = run_suite(chosen, folder, device, remove_checkpoints, parallel, **part)
    results = read_results(folder, chosen.name)
    if results:
        from alhvr_trainer.experiments.benchmark.report import write_report

        report = write_report(chosen, results, folder)
        print(f"report: {report}, and as a page {report.with_suffix('.html').name}", flush=True)
    if failures:
        raise InputError(f"{len(failures)} run(s) failed, all others are done: {'; '.join(failures)}")
    if not results:
        raise InputError(f"there is no finished run in {folder / RUNS}")
    return report


def _list(value: Any) -> list[Any] | None:
    """``--methods A,B`` arrives as text, ``--seeds 0,1`` as a tuple, ``--seeds 0`` as a number."""
    if value is None:
        return None
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]
