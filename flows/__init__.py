"""Order: what runs after what."""

import os

# Set before torch is loaded, which reads it then. Threads that wait for each other spin for some microseconds and then
# sleep: spinning on, as they would, makes a step eight times slower beside processes that decode images on the same
# cores, and sleeping at once makes it 1.5 times slower where there is nothing else.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
