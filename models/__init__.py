"""Networks, their losses and their probes: computation only, no files and no flows."""
