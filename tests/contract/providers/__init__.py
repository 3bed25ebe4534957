"""The adapters of payment providers against whatever speaks the provider's protocol."""
