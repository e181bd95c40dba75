"""Pure functions on Arrow batches and their kernels. Nothing here knows of Beam, recipes or run folders."""

import os

# Where a matrix lies in memory changes the last bits of MKL's sums, and so of torch's on Intel processors, unless it is
# told otherwise before its first one.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
