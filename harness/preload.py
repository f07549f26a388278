"""What every worker process needs, imported once: the fork server of `harness.execute` imports this module.

It must start no thread and touch no GPU, or the forked workers would inherit broken copies of them.
"""

import contextlib
import gc
import signal

from harness.worker import importing, quiet_threads, warm_up

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the fork server itself does, but after these imports
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked until here, see harness.execute
with contextlib.suppress(Exception), importing():  # a torch that cannot be imported is the driver's to tell, once
    import harness.cell
    import harness.claims
    import harness.stages
    import harness.store  # noqa: F401

    quiet_threads()
    warm_up()
gc.freeze()  # workers share these objects' memory for as long as no collector writes into it
