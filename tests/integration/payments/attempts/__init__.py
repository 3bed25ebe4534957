"""Further attempts of payments: other cards, pages of the provider, saved methods; and manual capture."""
