"""The demo: an embedded phantom data set, the whole way from planning to the report."""
