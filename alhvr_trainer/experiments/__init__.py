"""What shows how well it works: the demo, benchmarks, and the conversion of public data sets."""
