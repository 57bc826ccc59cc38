"""Order: what runs after what."""

import os

# Set before torch is loaded, which reads it then. Threads that wait for each other must not spin: beside processes that
# decode images a training step was measured eight times slower with spinning threads on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
