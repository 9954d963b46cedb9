"""The command line. It says first of all what must be said before numpy is imported.

numpy's linear algebra, which nobody here uses, starts threads as it is imported; they would cost memory, and keep
the privileges that the agent drops.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
