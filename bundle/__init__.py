"""Source of the exported MONAI bundles; ``scripts`` is their code, which this package uses as well."""
