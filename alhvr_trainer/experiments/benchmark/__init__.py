"""The fair test bench: methods × seeds × labelled fractions on one data set, measured alike, with tables and plots."""
