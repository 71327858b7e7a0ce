"""Published models ↔ SALMA's names, configuration and tokenizer."""
