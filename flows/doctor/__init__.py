"""`graft doctor`: what is well here, what deserves a look, what is broken, and what to do about it."""
