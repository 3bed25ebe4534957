"""The chassis: what every service does alike. It contains no rule of any business and imports no service."""
