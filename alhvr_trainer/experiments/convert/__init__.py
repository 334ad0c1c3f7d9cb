"""Converting released data sets into nnU-Net's raw layout, with the splits of the semi-supervised papers."""
