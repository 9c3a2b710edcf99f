"""The demo model, its cheaper draft, and conversations to ask them."""
