"""From raw files to tensors: open, harmonise, regrid, write Zarr, statistics."""
