"""Semi-supervised methods, a module each: its formulas in pure torch, and its trainer on the common base."""
