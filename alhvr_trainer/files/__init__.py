"""Files that anyone may have written or damaged: read without running code, checked before use."""
