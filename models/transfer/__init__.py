"""Ways a student learns, one file each: `method: foo` in a recipe finds models/transfer/foo.py."""
