"""What every worker process needs, imported once: the fork server of `harness.execute` imports this module.

It must start no thread and touch no GPU, or the forked workers would inherit broken copies of them.
"""

import harness.cell
import harness.claims
import harness.stages
import harness.store  # noqa: F401
from harness.worker import quiet_threads, warm_up

quiet_threads()
warm_up()
