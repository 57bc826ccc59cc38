"""Pretext methods, one file each: `method: foo` in a recipe finds models/pretext/foo.py."""
