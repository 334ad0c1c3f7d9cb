"""The fair test bench: methods × seeds × labeled fractions on one data set, measured alike, with tables and plots."""
