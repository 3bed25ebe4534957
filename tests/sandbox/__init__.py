"""The sandbox provider, called as Stripe's SDK calls it."""
