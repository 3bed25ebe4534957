"""A real flash sale on the local mesh, from outside, and the proof that it adds up: `make demo`."""
