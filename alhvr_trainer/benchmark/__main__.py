"""``python -m alhvr_trainer.benchmark JOB PLANS OUTPUT DEVICE``: one run, with the job as JSON; the runner starts it.

A module of this name is not imported again by nnU-Net's worker processes, which saves them seconds.
"""

import json
import sys
from pathlib import Path

from alhvr_trainer.benchmark.jobs import Job
from alhvr_trainer.benchmark.one_run import run
from alhvr_trainer.errors import InputError

try:
    run(Job(**json.loads(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
except InputError as error:
    sys.exit(str(error))
