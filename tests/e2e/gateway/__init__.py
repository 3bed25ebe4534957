"""The edge: access, malformed requests, and what answers and logs reveal."""
