"""Programs that load a mesh: each runs as a process of its own, so that its CPU time is counted separately."""
