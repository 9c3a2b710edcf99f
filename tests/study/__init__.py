"""The study behind the README's figures on error rates, power, diagnosis and localisation: `make study`."""
