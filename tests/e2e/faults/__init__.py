"""Parts that die, hang or run twice; races. Only these modules kill parts of the mesh."""
