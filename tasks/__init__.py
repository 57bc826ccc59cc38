"""Join: one file a stage; it opens its inputs, calls models and keeps what comes out."""
