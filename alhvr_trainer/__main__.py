"""``python -m alhvr_trainer``, the ``alhvr`` command; torchrun starts it so."""

import sys

from alhvr_trainer.cli import main

sys.exit(main())
