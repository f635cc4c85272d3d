"""`launcher data`: what a data set gives, measured and shown."""
