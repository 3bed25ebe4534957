"""Rules for the protos, the routes and the deployment files, checked without a server."""
