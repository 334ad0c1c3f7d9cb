"""Unlabelled cases: where they lie, reading and checking, fingerprint, preprocessing, loading."""
