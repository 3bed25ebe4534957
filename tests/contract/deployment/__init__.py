"""Rules for the deployment files."""
