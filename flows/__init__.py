"""Order: what runs after what."""
