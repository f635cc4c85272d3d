"""The files that the pages' recipes name as the reader's own code."""
