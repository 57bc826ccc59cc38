"""What can be wrong with something that was kept."""


class CorruptFile(ValueError):
    """A kept file is missing, cut short or changed since it was written."""


class LeaseLost(RuntimeError):
    """Another process took this artifact over; what this one still has in hand must not be kept."""


class StoreUnwritable(OSError):
    """The disk is full, read-only or not permitted."""


class DataCollected(FileNotFoundError):
    """The artifact was made, and its data was removed later as nothing used it; its marker is there."""


class NewerArtifact(RuntimeError):
    """A newer Graft made this artifact, and this one cannot read what it says of it."""


class StoreAway(OSError):
    """The object store does not answer, does not know the bucket, or refuses."""
