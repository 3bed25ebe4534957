"""The services, and the chassis that each of them is built on."""
