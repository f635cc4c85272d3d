"""What `launcher new` copies: a small project that checks, trains and passes its test as it is."""
