"""One run of a suite: ``python -m alhvr_trainer.experiments.benchmark JOB PLANS OUTPUT DEVICE``, with the job as JSON.

A module of this name is not imported again by nnU-Net's worker processes, which saves them seconds.
"""

import json
import sys
from pathlib import Path

from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.benchmark.jobs import Job
from alhvr_trainer.experiments.benchmark.one_run import run

try:
    run(Job(**json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
except InputError as error:
    sys.exit(str(error))
