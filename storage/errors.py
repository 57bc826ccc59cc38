"""What can be wrong with something that was kept."""


class CorruptFile(ValueError):
    """A kept file is missing, cut short or changed since it was written."""


class LeaseLost(RuntimeError):
    """Another process took this artifact over; what this one still has in hand must not be kept."""


class StoreUnwritable(OSError):
    """The disk is full, read-only or not permitted."""


class StoreAway(OSError):
    """The object store does not answer, does not know the bucket, or refuses."""
