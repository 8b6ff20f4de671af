"""What works with no network, card or data: pictures that draw themselves, and a small model trained on them."""
