"""What holds for every test, wherever it lives.

One thread for each process: the models of the tests are so small that threads wait for each other longer than they
compute, four times longer on a busy machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, and by the programs that tests start
