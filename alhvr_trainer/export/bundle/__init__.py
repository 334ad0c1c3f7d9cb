"""``alhvr export_bundle``: a trained model as a MONAI bundle.

``command`` is what users call, ``export`` puts the bundle together; ``architecture`` is its network and weights,
``native`` its workflow without nnU-Net, ``metadata`` and ``card`` what it says of itself: ``facts`` of the plans,
``details`` of the user, measured ``results``.
"""

from alhvr_trainer.export.bundle.command import export_bundle

__all__ = ["export_bundle"]
