"""The demo: an embedded phantom data set, the whole way from planning to the report."""

DATASET_ID = 901
"""Of the phantoms in nnU-Net's folders."""
