"""Self-contained HTML pages: their parts, a 3D viewer, and the report about a finished training.

Not ``report``, for that is the command's name, and the function of this name in the package.
"""
