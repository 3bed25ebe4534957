"""Further attempts of payments: other cards, pages of the provider, and saved methods."""
