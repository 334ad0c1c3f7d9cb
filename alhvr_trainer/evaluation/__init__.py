"""``alhvr evaluate``."""
