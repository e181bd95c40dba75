"""Pure functions on Arrow batches and their kernels. Nothing here knows of Beam, recipes or run folders."""
