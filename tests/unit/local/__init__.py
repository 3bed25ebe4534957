"""The supervisor of the local mesh."""
