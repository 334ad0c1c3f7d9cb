"""One run of a suite: ``python -m alhvr_trainer.experiments.benchmark JOB PLANS OUTPUT DEVICE``, with the job as JSON.

A module of this name is not imported again by nnU-Net's worker processes, which saves them seconds.
"""

import json
import sys
from pathlib import Path

from alhvr_trainer.errors import InputError
from alhvr_trainer.processes import end_with_parent


def main(job: str, plans: str, output: str, device: str) -> None:
    """Run it; importing what that takes lasts seconds."""
    from alhvr_trainer.experiments.benchmark.jobs import Job
    from alhvr_trainer.experiments.benchmark.one_run import run

    try:
        run(Job(**json.loads(job)), plans, Path(output), device)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    end_with_parent()
    main(*sys.argv[1:5])
