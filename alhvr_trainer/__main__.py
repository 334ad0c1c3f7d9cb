"""``python -m alhvr_trainer``, the ``alhvr`` command; torchrun starts it so."""

import sys

from alhvr_trainer.cli import main
from alhvr_trainer.processes import end_with_parent

end_with_parent()
sys.exit(main())
