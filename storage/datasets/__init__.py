"""Where images come from: one file a format, and the file's name is the format's name."""
