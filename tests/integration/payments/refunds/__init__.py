"""Money that goes back: refunds, those that people made, and what waits for an operator."""
